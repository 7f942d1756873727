-- What readers need to know, read in the snapshot of the rows that it explains.

create function rowcast.describe(only_name text default null) returns table (
    name text, generation bigint, id int, relation_oid oid, relation text, source text, policy text, columns json, key int[],
    casts text[], bulk_rows int, refresh_ms int, key_sql text, row_sql text, by_key_sql text, fingerprint text, is_intact boolean,
    is_exempt boolean
)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
begin
    return query
        select p.name, p.generation, p.id, c.oid, format('%s%I.%I', case c.relkind when 'r' then 'only ' else '' end, n.nspname, c.relname),
               case c.relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end,
               p.policy, s.columns, s.key, s.casts, p.bulk_rows, p.refresh_ms, rowcast.key_sql(c.oid, p.key, 'r'),
               rowcast.row_sql(c.oid, s.names, p.key || p.policy_columns), rowcast.by_key_sql(c.oid, p.key),
               md5(concat_ws(' ', s.fingerprint, f.files, t.triggers, d.sources, intact.is_intact,
                             case p.policy when 'rls' then rowcast.rls_fingerprint(c.oid) end)),
               intact.is_intact, c.relrowsecurity and rowcast.is_exempt(c.oid)
        from rowcast.publications as p
        join pg_class as c on c.oid = p.relation
        join pg_namespace as n on n.oid = c.relnamespace
        -- The columns that still exist, in order; then those that only the policy needs.
        cross join lateral (
            select json_agg(json_build_object('name', w.name, 'type', rowcast.type_name(w.type), 'kind', rowcast.type_kind(w.type),
                                              'hidden', w.is_hidden)
                            order by w.number) as columns,
                   array_agg(rowcast.cast_name(w.type) order by w.number) as casts,
                   array_agg(w.name order by w.number) as names,
                   string_agg(format('%s %s %s %s %s', w.attnum, w.name, w.type, w.typmod, w.is_hidden), ',' order by w.number)
                       as fingerprint,
                   (select array_agg(array_position(array_agg(w.name order by w.number), k.name) - 1 order by k.place)
                    from unnest(p.key) with ordinality as k (name, place)) as key
            from (
                select a.attname::text as name, a.atttypid as type, a.atttypmod as typmod, a.attnum, h.is_hidden,
                       row_number() over (order by h.is_hidden, coalesce(array_position(p.columns, a.attname::text), a.attnum))
                           as number
                from pg_attribute as a
                cross join lateral (
                    select p.columns is not null and a.attname <> all (p.columns) as is_hidden
                ) as h
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                  and (not h.is_hidden or a.attname = any (p.policy_columns))
            ) as w
        ) as s
        cross join lateral (
            select string_agg(format('%s:%s', l.oid, l.relfilenode), ',' order by l.oid) as files
            from pg_class as l where l.oid = c.oid or l.oid in (select rowcast.descendants(c.oid))
        ) as f
        cross join lateral (
            select string_agg(format('%s:%s:%s', g.tgrelid, g.tgname, g.tgenabled), ',' order by g.tgrelid, g.tgname) as triggers
            from pg_trigger as g
            where (g.tgrelid = c.oid or g.tgrelid in (select rowcast.descendants(c.oid)))
              and g.tgname like format('!rowcast\_%s\_%%', p.capture)
        ) as t
        -- What it depends on: storage and watches of tables, what views say, what a REFRESH leaves, bodies of functions.
        cross join lateral (
            select string_agg(case when o.is_function then (
                       select concat_ws(':', o.object, g.ctid, g.xmin) from pg_proc as g where g.oid = o.object
                   ) else (
                       select concat_ws(':', o.object, l.relfilenode,
                                        case l.relkind when 'v' then md5(pg_get_viewdef(l.oid))
                                                       when 'm' then concat(l.ctid, l.xmin) end, (
                           select string_agg(concat_ws(':', e.oid, e.relfilenode), ',' order by e.oid)
                           from pg_class as e where l.relkind = 'p' and e.oid in (select rowcast.descendants(l.oid))
                       ), (
                           select string_agg(concat_ws(':', g.tgrelid, g.tgname, g.tgenabled), ',' order by g.tgrelid, g.tgname)
                           from pg_trigger as g
                           where g.tgfoid = 'rowcast.watch()'::regprocedure and g.tgname ~ format('^!rowcast_watch_%s_', l.oid)
                             and (g.tgrelid = l.oid or l.relkind = 'p' and g.tgrelid in (select rowcast.descendants(l.oid)))
                       ))
                       from pg_class as l where l.oid = o.object
                   ) end, ',' order by o.is_function, o.object) as sources
            from rowcast.derive_sources(c.oid, p.depends_on) as o
        ) as d
        cross join lateral (
            select (c.relkind in ('v', 'm') or rowcast.is_intact(p.capture, c.oid)) and rowcast.is_watched(p.id) as is_intact
        ) as intact
        where array_position(s.key, null) is null and (only_name is null or p.name = only_name);
end
$$;
comment on function rowcast.describe(text) is
    'One row for every publication (or the one named) whose relation and key columns exist, with the SQL that reads its keys
and rows.
is_intact: every change is logged. fingerprint: differs when rows may have changed, or become visible, without a trigger.
is_exempt: row security applies to the current role, but a policy shows it every row.';

-- Subqueries for single rows, and not joins, because they can only be answered by an index: a join the planner prefers to
-- make by reading all of pg_attribute, at every cut.
create function rowcast.catalogue_stamp() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
begin
    return (
        with recursive tree (relation) as (
            (select p.relation::oid from rowcast.publications as p
             union
             select s.object from rowcast.sources as s where not s.is_function)
            union
            select i.inhrelid
            from tree cross join lateral (
                select i.inhrelid from pg_inherits as i where i.inhparent = tree.relation offset 0
            ) as i
        )
        select md5(concat_ws(' ', (
            select string_agg(concat_ws(' ', p.ctid, p.xmin, (
                select string_agg(concat(a.ctid, a.xmin), ' ' order by a.attnum)
                from pg_attribute as a where a.attrelid = p.relation and a.attnum > 0
            ), (
                select concat(f.ctid, f.xmin) from pg_proc as f
                where f.proname = 'capture_' || p.capture and f.pronamespace = to_regnamespace('rowcast') and f.pronargs = 0
            )), ' ' order by p.id) from rowcast.publications as p
        ), (
            select string_agg(concat_ws(' ', tree.relation, (
                select concat(c.ctid, c.xmin, (select concat(n.ctid, n.xmin) from pg_namespace as n where n.oid = c.relnamespace))
                from pg_class as c where c.oid = tree.relation
            ), (
                select string_agg(concat(t.ctid, t.xmin), ' ' order by t.tgname)
                from pg_trigger as t where t.tgrelid = tree.relation
            ), (
                select string_agg(concat(i.ctid, i.xmin), ' ' order by i.inhseqno)
                from pg_inherits as i where i.inhrelid = tree.relation
            ), (
                select string_agg(concat(s.ctid, s.xmin), ' ' order by s.srsubid)
                from pg_subscription_rel as s where s.srrelid = tree.relation
            ), (
                select string_agg(concat(w.ctid, w.xmin), ' ' order by w.rulename)
                from pg_rewrite as w where w.ev_class = tree.relation
            )), ' ' order by tree.relation) from tree
        ), (
            select string_agg(concat_ws(' ', s.publication, s.object, (
                select concat(f.ctid, f.xmin) from pg_proc as f where s.is_function and f.oid = s.object
            )), ' ' order by s.publication, s.is_function, s.object) from rowcast.sources as s
        ), (
            select concat(case when bool_or(p.policy = 'rls') then rowcast.roles_stamp() end, string_agg((
                select string_agg(concat(o.ctid, o.xmin), ' ' order by o.polname) from pg_policy as o where o.polrelid = p.relation
            ), ' ' order by p.id)) from rowcast.publications as p
        )))
    );
end
$$;
comment on function rowcast.catalogue_stamp() is
    'Differs whenever rowcast.describe() may: versions of the catalogue''s rows. Cheap enough for every cut.';

create function rowcast.changed_publications(xmax xid8, xip xid8[]) returns int[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return (
        select array_agg(distinct c.publication) from (
            select c.publication from rowcast.changes_0 as c where c.xid >= $1
            union all
            select c.publication from rowcast.changes_0 as c where c.xid = any ($2)
            union all
            select c.publication from rowcast.changes_1 as c where c.xid >= $1
            union all
            select c.publication from rowcast.changes_1 as c where c.xid = any ($2)
            union all
            select c.publication from rowcast.changes_2 as c where c.xid >= $1
            union all
            select c.publication from rowcast.changes_2 as c where c.xid = any ($2)
            union all
            select c.publication from rowcast.changes_3 as c where c.xid >= $1
            union all
            select c.publication from rowcast.changes_3 as c where c.xid = any ($2)
        ) as c
    );
end
$$;
comment on function rowcast.changed_publications(xid8, xid8[]) is
    'Publications with changes that this snapshot sees and an earlier one, given by its xmax and xip, did not.';

create function rowcast.changed_keys(xmax xid8, xip xid8[], publications int[])
    returns table (publication int, keys text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return query
        select distinct c.publication, c.keys from (
            select c.publication, c.keys from rowcast.changes_0 as c where c.xid >= $1
            union all
            select c.publication, c.keys from rowcast.changes_0 as c where c.xid = any ($2)
            union all
            select c.publication, c.keys from rowcast.changes_1 as c where c.xid >= $1
            union all
            select c.publication, c.keys from rowcast.changes_1 as c where c.xid = any ($2)
            union all
            select c.publication, c.keys from rowcast.changes_2 as c where c.xid >= $1
            union all
            select c.publication, c.keys from rowcast.changes_2 as c where c.xid = any ($2)
            union all
            select c.publication, c.keys from rowcast.changes_3 as c where c.xid >= $1
            union all
            select c.publication, c.keys from rowcast.changes_3 as c where c.xid = any ($2)
        ) as c where c.publication = any (publications);
end
$$;
comment on function rowcast.changed_keys(xid8, xid8[], int[]) is
    'The keys changed between an earlier snapshot, given by its xmax and xip, and this one, as they stand in the log: one a
line, some more than once; null: any key.';
