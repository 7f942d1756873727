-- Row security: Postgres decides who sees which rows. A node reads a channel's rows, and the leader asks which changed rows
-- somebody sees, after taking on a role and claims as PostgREST and Supabase do; both end with the transaction.

create function rowcast.become(role text, claims text) returns void
    language plpgsql volatile
as $$
begin
    -- The role comes last: from then on the schema rowcast may be out of reach.
    perform pg_catalog.set_config('request.jwt.claims', become.claims, true),
            pg_catalog.set_config('request.jwt.claim.sub', coalesce(pg_catalog.json_extract_path_text(become.claims::pg_catalog.json, 'sub'), ''), true),
            pg_catalog.set_config('request.jwt.claim.role', coalesce(pg_catalog.json_extract_path_text(become.claims::pg_catalog.json, 'role'), ''), true),
            pg_catalog.set_config('row_security', 'on', true),
            pg_catalog.set_config('search_path', 'public, extensions, pg_temp', true),
            pg_catalog.set_config('role', become.role, true);
end
$$;
comment on function rowcast.become(text, text) is
    'Until the end of the transaction: this role, these claims (JSON), row security on, and the search path that functions in
policies expect. Fails where the session''s own role is no member of the role.';

create function rowcast.rls_fingerprint(relation oid) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(concat_ws(' ', c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relacl, n.nspacl, (
            select string_agg(concat_ws(' ', a.attnum, a.attacl), ',' order by a.attnum)
            from pg_attribute as a where a.attrelid = c.oid and a.attacl is not null
        ), (
            select string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles, p.polqual), ',' order by p.polname)
            from pg_policy as p where p.polrelid = c.oid
        ), rowcast.roles_stamp()))
        from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = $1
    );
end
$$;
comment on function rowcast.rls_fingerprint(oid) is
    'Differs when other rows of the table may be visible to somebody although no row changed: policies, privileges, owner,
roles and their members. Functions that policies call, and tables that they read, are not in it.';

create function rowcast.roles_stamp() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(concat((
            select string_agg(concat_ws(' ', r.oid, r.rolname, r.rolsuper, r.rolinherit, r.rolbypassrls), ',' order by r.oid)
            from pg_roles as r where r.oid >= 16384 or r.rolsuper
        ), (
            select string_agg(concat_ws(' ', m.roleid, m.member), ',' order by m.roleid, m.member) from pg_auth_members as m
        )))
    );
end
$$;
comment on function rowcast.roles_stamp() is 'Differs when a role''s attributes or its members do.';

create function rowcast.is_exempt(relation oid) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return row_security_active($1)
       and exists (
           select from pg_policy as p
           where p.polrelid = $1 and p.polpermissive and p.polcmd in ('*', 'r') and pg_get_expr(p.polqual, $1) = 'true'
             and exists (select from unnest(p.polroles) as r (oid) where r.oid <> 0 and pg_has_role(r.oid, 'usage')))
       and not exists (
           select from pg_policy as p
           where p.polrelid = $1 and not p.polpermissive and p.polcmd in ('*', 'r')
             and exists (select from unnest(p.polroles) as r (oid) where r.oid = 0 or pg_has_role(r.oid, 'usage')));
end
$$;
comment on function rowcast.is_exempt(oid) is
    'Whether row security applies to the current role, and a policy made for it shows it every row all the same:
create policy … for select to rowcast_server using (true).';

create function rowcast.prepare_sight(publication int) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    published oid;
    target text;
    wanted text;
    compared text;
begin
    select c.oid, format('%s%I.%I', case c.relkind when 'r' then 'only ' else '' end, n.nspname, c.relname)
    into strict published, target
    from rowcast.publications as p join pg_class as c on c.oid = p.relation join pg_namespace as n on n.oid = c.relnamespace
    where p.id = prepare_sight.publication;
    select string_agg(format('pg_catalog.json_array_element_text(u.key::pg_catalog.json, %s)::%s as part_%1$s', k.place - 1,
                             format_type(rowcast.base_type(a.atttypid), -1)), ', ' order by k.place),
           string_agg(format('r.%I operator(%I.=) k.part_%s', a.attname, coalesce(o.nspname, 'pg_catalog'), k.place - 1),
                      ' and ' order by k.place)
    into strict wanted, compared
    from rowcast.publications as p
    cross join unnest(p.key) with ordinality as k (name, place)
    join pg_attribute as a on a.attrelid = published and a.attname = k.name and a.attnum > 0 and not a.attisdropped
    left join lateral (
        select n.nspname from pg_opclass as c join pg_namespace as n on n.oid = c.opcnamespace
        where c.opcmethod = 403 and c.opcdefault and c.opcintype = rowcast.base_type(a.atttypid) limit 1
    ) as o on true
    where p.id = prepare_sight.publication;
    if exists (select from pg_prepared_statements as s where s.name = 'rowcast_sight_' || prepare_sight.publication) then
        execute format('deallocate %I', 'rowcast_sight_' || prepare_sight.publication);
        execute format('deallocate %I', 'rowcast_sight_by_key_' || prepare_sight.publication);
    end if;
    -- By its place in storage, a row is found fast whatever its key's type: an equality that is not leakproof would have to
    -- wait behind the policies of all rows.
    execute format('prepare %I (pg_catalog.tid[], pg_catalog.oid[]) as select case when pg_catalog.row_security_active(%s::pg_catalog.oid)'
                   ' then (select coalesce(pg_catalog.array_agg(k.place::pg_catalog.int4 - 1), ''{}'')'
                   ' from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2)) with ordinality as k (at, part, place)'
                   ' join %s as r on r.ctid operator(pg_catalog.=) k.at and r.tableoid operator(pg_catalog.=) k.part) end',
                   'rowcast_sight_' || prepare_sight.publication, published, target);
    -- Who may read single columns only has no access to a row's place.
    execute format('prepare %I (pg_catalog.text[]) as select case when pg_catalog.row_security_active(%s::pg_catalog.oid)'
                   ' then (select coalesce(pg_catalog.array_agg(k.place::pg_catalog.int4 - 1), ''{}'')'
                   ' from (select u.place, %s from pg_catalog.unnest($1) with ordinality as u (key, place) offset 0) as k'
                   ' join %s as r on %s) end',
                   'rowcast_sight_by_key_' || prepare_sight.publication, published, wanted, target, compared);
end
$$;
comment on function rowcast.prepare_sight(int) is
    'Prepares, for this session, the statements by which rowcast.see asks. Kept from cut to cut: Postgres plans them again
when the role or a policy is another, and not for other claims.';

create function rowcast.see(publication int, places tid[], parts oid[], keys text[], roles text[], claims text[])
    returns table (identity int, seen int[], problem text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set row_security = on
    set plan_cache_mode = force_generic_plan
as $$
declare
    by_place constant text := format('execute %I (%L, %L)', 'rowcast_sight_' || see.publication, places, parts);
    by_key constant text := format('execute %I (%L)', 'rowcast_sight_by_key_' || see.publication, keys);
    own_role constant text := current_setting('role');
    -- Nobody else's changes wait longer for the policies of one table.
    late_after constant timestamptz := clock_timestamp() + interval '1 second';
    published oid;
begin
    select p.relation into strict published from rowcast.publications as p where p.id = see.publication;
    for number in 1..cardinality(roles) loop
        identity := number - 1;
        seen := null;
        problem := null;
        if clock_timestamp() > late_after then
            problem := 'late';
        else
            begin
                perform set_config('request.jwt.claims', claims[number], true),
                        set_config('request.jwt.claim.sub', coalesce(json_extract_path_text(claims[number]::json, 'sub'), ''), true),
                        set_config('request.jwt.claim.role', coalesce(json_extract_path_text(claims[number]::json, 'role'), ''), true),
                        set_config('search_path', 'public, extensions, pg_temp', true),
                        set_config('role', roles[number], true);
                -- As the identity: nothing is looked up by the search path here, and nothing in the schema rowcast.
                if pg_catalog.has_table_privilege(published, 'select') then
                    execute by_place into seen;
                else
                    execute by_key into seen;
                end if;
                perform pg_catalog.set_config('role', own_role, true),
                        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
                if seen is null then
                    problem := 'exempt';
                end if;
            exception when others then
                -- Role and settings are again what they were before the block.
                seen := null;
                problem := sqlstate;
            end;
        end if;
        return next;
    end loop;
    perform set_config('request.jwt.claims', '', true), set_config('request.jwt.claim.sub', '', true),
            set_config('request.jwt.claim.role', '', true);
end
$$;
comment on function rowcast.see(int, tid[], oid[], text[], text[], text[]) is
    'For each identity (a role and claims) the indices of those rows that it sees, in this snapshot; the rows are given by
place, partition and key. Or a problem: an SQLSTATE, `exempt` (row security does not apply to the role), `late`. One that
fails does not touch the others.';
