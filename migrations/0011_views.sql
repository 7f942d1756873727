-- What a view is made of, and the watches on the tables under it.
--
-- A view has no rows of its own, so nothing of it can be logged key by key. A *watch* is a set of triggers on a table under
-- it, or on a relation that a publication names in depends_on: a statement that changed rows logs one null key for every
-- publication that depends on the table, which says "any key", once in a transaction. For a view that means: run it again.
--
-- Watches are apart from capture: a table has either, both or none. All watches share one function; which publications a
-- table is watched for stands in its triggers' argument.

create table rowcast.sources (
    publication int not null,
    object oid not null,
    is_function boolean not null,
    primary key (publication, is_function, object)
);
comment on table rowcast.sources is
    'What views, and publications with depends_on, are made of, as their watches were installed for. Derived anew from the
catalogue when that changes.';
comment on column rowcast.sources.publication is 'rowcast.publications.id';
comment on column rowcast.sources.object is 'A relation under it, views between and itself included; or a function that it calls.';
comment on column rowcast.sources.is_function is 'Which of the two.';

create function rowcast.derive_sources(relation oid, depends_on oid[]) returns table (object oid, is_function boolean)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set jit = off
    -- A look-up for each of a few: the planner takes them for many, and reads whole catalogues.
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    if coalesce(cardinality(depends_on), 0) = 0
       and (select c.relkind from pg_class as c where c.oid = derive_sources.relation) not in ('v', 'm') then
        return;
    end if;
    return query
        with recursive under (object, is_function) as (
            select c.oid, false from pg_class as c
            where c.oid = derive_sources.relation and c.relkind in ('v', 'm')
               or c.oid = any (derive_sources.depends_on) and c.oid <> derive_sources.relation
            union
            select found.object, found.is_function
            from under cross join lateral (
                -- What a view's query names. A materialised view changes by REFRESH alone, whatever is under it.
                select d.refobjid as object, d.refclassid = 'pg_proc'::regclass as is_function
                from pg_class as c
                join pg_rewrite as w on w.ev_class = c.oid and w.ev_type = '1'
                join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refobjid <> c.oid
                where c.oid = under.object and not under.is_function and c.relkind = 'v'
                  and d.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass)
                union all
                -- The functions behind its operators and its aggregates.
                select o.oprcode, true
                from pg_rewrite as w
                join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
                                       and d.refclassid = 'pg_operator'::regclass
                join pg_operator as o on o.oid = d.refobjid
                where w.ev_class = under.object and not under.is_function and w.ev_type = '1'
                union all
                select f.oid, true
                from pg_aggregate as a
                cross join unnest(array[a.aggtransfn, a.aggfinalfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]) as f (oid)
                where under.is_function and a.aggfnoid = under.object and f.oid <> 0
                union all
                -- Rows of plain inheritance children change in statements that name the child.
                select i.inhrelid, false
                from pg_inherits as i join pg_class as c on c.oid = i.inhparent and c.relkind = 'r'
                where i.inhparent = under.object and not under.is_function
            ) as found
        )
        select under.object, under.is_function from under
        -- Functions of Postgres itself read no tables.
        where not under.is_function or not exists (
            select from pg_proc as f where f.oid = under.object and f.pronamespace = 'pg_catalog'::regnamespace);
end
$$;
comment on function rowcast.derive_sources(oid, oid[]) is
    'What a publication of this relation depends on besides the relation''s own rows: the relations under a view and those
named, down to tables, and functions. Nothing for a table that names nothing.';

create function rowcast.check_sources(relation regclass, depends_on regclass[]) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    wrong record;
begin
    if array_position(depends_on, null) is not null then
        raise exception 'depends_on of % names nothing', relation using errcode = 'invalid_parameter_value';
    end if;
    select s.object::regclass as name, c.relkind, c.relpersistence, n.nspname into wrong
    from rowcast.derive_sources(relation, depends_on) as s
    join pg_class as c on c.oid = s.object and not s.is_function
    join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind not in ('r', 'p', 'v', 'm') or c.relpersistence = 't' or rowcast.is_of_system(c.oid)
       or exists (select from pg_class as l where l.oid in (select rowcast.descendants(c.oid)) and l.relkind = 'f')
    order by c.relname limit 1;
    if found then
        raise exception '% depends on %, whose changes cannot be seen', relation, wrong.name
            using errcode = 'feature_not_supported',
                  detail = format('%s is %s.', wrong.name, case
                      when wrong.relpersistence = 't' then 'temporary'
                      when wrong.relkind = 'f' then 'a foreign table'
                      when wrong.relkind = 'S' then 'a sequence'
                      when rowcast.is_of_system(wrong.name) then 'a system table'
                      when wrong.relkind = 'p' then 'partitioned, with partitions that are foreign tables'
                      else 'not a table' end);
    end if;
    -- Postgres keeps no dependencies on what it cannot be without, but the query names it.
    select u.object::regclass as view, t.oid::regclass as name into wrong
    from rowcast.derive_sources(relation, depends_on) as u
    join pg_class as v on v.oid = u.object and not u.is_function and v.relkind = 'v'
    join pg_rewrite as w on w.ev_class = v.oid and w.ev_type = '1'
    cross join lateral regexp_matches(w.ev_action::text, ':relid ([0-9]+)', 'g') as m
    join pg_class as t on t.oid = m[1]::oid and rowcast.is_of_system(t.oid)
    limit 1;
    if found then
        raise exception '% depends on %, whose changes cannot be seen', relation, wrong.name
            using errcode = 'feature_not_supported', detail = format('%s reads a system table.', wrong.view);
    end if;
    if depends_on is null then
        select s.object::regprocedure as name, f.proretset into wrong
        from rowcast.derive_sources(relation, null) as s
        join pg_proc as f on f.oid = s.object and s.is_function and f.prokind in ('f', 'w')
        where f.provolatile <> 'i' or f.proretset
        order by f.proname limit 1;
        if found then
            raise exception '% calls %, and what that reads cannot be known', relation, wrong.name
                using errcode = 'feature_not_supported',
                      detail = case when wrong.proretset then 'It returns a set.' else 'It is not immutable.' end,
                      hint = 'Name the relations that it reads: depends_on => ''{…}'', or ''{}'' if it reads none.';
        end if;
    end if;
end
$$;
comment on function rowcast.check_sources(regclass, regclass[]) is
    'Raises an error if changes of something that a publication depends on cannot be seen.';

create function rowcast.is_of_system(relation oid) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where c.oid = relation and n.nspname in ('pg_catalog', 'information_schema', 'rowcast', 'pg_toast'));
end
$$;
comment on function rowcast.is_of_system(oid) is 'Whether a relation is one of Postgres'' own or of ours.';

-- The settings that a transaction has already logged are kept in a setting of the transaction, with its id, so that nobody's
-- earlier value counts. It is taken back with a savepoint, as what was logged is.
create function rowcast.watch() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    told text;
    mark text;
    ids int[];
begin
    if tg_level = 'STATEMENT' then
        if tg_op = 'UPDATE' or tg_op = 'INSERT' then
            if not exists (select from new_rows) then
                return null;
            end if;
        elsif tg_op = 'DELETE' then
            if not exists (select from old_rows) then
                return null;
            end if;
        end if;
    end if;
    mark := pg_current_xact_id()::text || ' ';
    told := current_setting('rowcast.told', true);
    if starts_with(told, mark) then
        if strpos(told, tg_argv[0]) > 0 then
            return null;
        end if;
    else
        told := mark;
    end if;
    begin
        if pg_try_advisory_lock_shared(1919907683, 2) and pg_advisory_unlock_shared(1919907683, 2) then
            -- No leader is awake: perhaps nobody has followed for long.
            if not rowcast.is_followed() then
                return null;
            end if;
            perform rowcast.ring();
        end if;
        told := set_config('rowcast.told', told || tg_argv[0], true);
    exception when others then
        if not rowcast.is_followed() then
            return null;
        end if;
    end;
    ids := tg_argv[0];
    case (date_part('epoch', clock_timestamp()) / 300)::bigint % 4
    when 0 then
        if cardinality(ids) = 1 then
            insert into rowcast.changes_0 (publication) values (ids[1]);
        else
            insert into rowcast.changes_0 (publication) select unnest(ids);
        end if;
    when 1 then
        if cardinality(ids) = 1 then
            insert into rowcast.changes_1 (publication) values (ids[1]);
        else
            insert into rowcast.changes_1 (publication) select unnest(ids);
        end if;
    when 2 then
        if cardinality(ids) = 1 then
            insert into rowcast.changes_2 (publication) values (ids[1]);
        else
            insert into rowcast.changes_2 (publication) select unnest(ids);
        end if;
    else
        if cardinality(ids) = 1 then
            insert into rowcast.changes_3 (publication) values (ids[1]);
        else
            insert into rowcast.changes_3 (publication) select unnest(ids);
        end if;
    end case;
    return null;
end
$$;
comment on function rowcast.watch() is
    'Logs, once in a transaction, that any key of the publications in the trigger''s argument may have changed.';

create function rowcast.watched_for(arguments bytea) returns int[]
    language sql immutable strict
    set search_path = pg_catalog, pg_temp
    return split_part(encode(arguments, 'escape'), '\000', 1)::int[];
comment on function rowcast.watched_for(bytea) is 'The publications in the argument of a watch''s trigger.';

create function rowcast.install_watch(relation regclass, publications int[]) returns void
    language plpgsql volatile strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    row_level constant boolean := rowcast.needs_row_triggers(relation);
    prefix constant text := '!rowcast_watch_' || relation::oid;
    calls constant text := format('execute function rowcast.watch(%L)', publications::text);
    leaf regclass;
    wrong name;
begin
    for wrong in
        select t.tgname from pg_trigger as t
        where t.tgrelid = relation and t.tgparentid = 0 and t.tgfoid = 'rowcast.watch()'::regprocedure
          and t.tgname !~ '_truncate$'
          and case when row_level then t.tgname <> prefix || '_row'
                   else t.tgname not in (prefix || '_insert', prefix || '_update', prefix || '_delete') end
    loop
        execute format('drop trigger %I on %s', wrong, relation);
    end loop;
    if row_level then
        execute format('create or replace trigger %I after insert or update or delete on %s for each row %s',
                       prefix || '_row', relation, calls);
        execute format('alter table %s enable always trigger %I', relation, prefix || '_row');
    else
        execute format('create or replace trigger %I after insert on %s referencing new table as new_rows for each statement %s',
                       prefix || '_insert', relation, calls);
        execute format('create or replace trigger %I after update on %s referencing new table as new_rows for each statement %s',
                       prefix || '_update', relation, calls);
        execute format('create or replace trigger %I after delete on %s referencing old table as old_rows for each statement %s',
                       prefix || '_delete', relation, calls);
        execute format('alter table only %1$s enable always trigger %2$I, enable always trigger %3$I, enable always trigger %4$I',
                       relation, prefix || '_insert', prefix || '_update', prefix || '_delete');
    end if;
    -- Triggers on TRUNCATE are not passed on to partitions. Plain inheritance children have watches of their own.
    for leaf in
        select relation union all
        select rowcast.descendants(relation) from pg_class as c where c.oid = relation and c.relkind = 'p'
    loop
        execute format('create or replace trigger %I after truncate on %s for each statement %s',
                       prefix || '_truncate', leaf, calls);
        execute format('alter table only %s enable always trigger %I', leaf, prefix || '_truncate');
    end loop;
end
$$;
comment on function rowcast.install_watch(regclass, int[]) is
    'Makes or renews the triggers of a watch. The caller holds a lock that keeps writers out.';

create function rowcast.is_watching(relation oid, publications int[]) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        -- TRUNCATE is not looked at: it changes the storage, which the fingerprint shows.
        select count(t.oid) = case when w.row_level then 1 + w.descendants else 3 end
        from (select rowcast.needs_row_triggers($1) as row_level, (
                  select count(*) from rowcast.descendants($1) where (select c.relkind = 'p' from pg_class as c where c.oid = $1)
              ) as descendants) as w
        left join pg_trigger as t
            on (t.tgrelid = $1 or w.row_level and w.descendants > 0 and t.tgrelid in (select rowcast.descendants($1)))
            and t.tgfoid = 'rowcast.watch()'::regprocedure and t.tgenabled in ('A', 'O')
            and rowcast.watched_for(t.tgargs) @> $2
            and case when w.row_level then t.tgname = format('!rowcast_watch_%s_row', $1)
                     else t.tgname in (format('!rowcast_watch_%s_insert', $1), format('!rowcast_watch_%s_update', $1),
                                       format('!rowcast_watch_%s_delete', $1)) end
        group by w.row_level, w.descendants
    );
end
$$;
comment on function rowcast.is_watching(oid, int[]) is
    'Whether every change of a table is logged for these publications: all triggers are there and enabled.';

create function rowcast.is_watched(publication int) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return (
        select coalesce(array_agg(s.object order by s.is_function, s.object), array[]::oid[])
             = (select coalesce(array_agg(k.object order by k.is_function, k.object), array[]::oid[])
                from rowcast.sources as k where k.publication = is_watched.publication)
           and coalesce(bool_and(s.is_function or c.relkind not in ('r', 'p')
                                 or rowcast.is_watching(s.object, array[is_watched.publication])), true)
        from rowcast.publications as p
        cross join lateral rowcast.derive_sources(p.relation, p.depends_on) as s
        left join pg_class as c on c.oid = s.object and not s.is_function
        where p.id = is_watched.publication
    );
end
$$;
comment on function rowcast.is_watched(int) is
    'Whether every change of what a publication depends on is logged. True for one that depends on nothing but its table.';

create function rowcast.renew_watches() returns int[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    renewed int[];
    table_watched record;
begin
    select coalesce(array_agg(p.id), array[]::int[]) into renewed
    from rowcast.publications as p where not rowcast.is_watched(p.id);
    delete from rowcast.sources as k
    where not exists (
        select from rowcast.publications as p cross join lateral rowcast.derive_sources(p.relation, p.depends_on) as s
        where p.id = k.publication and s.object = k.object and s.is_function = k.is_function);
    insert into rowcast.sources (publication, object, is_function)
    select p.id, s.object, s.is_function
    from rowcast.publications as p cross join lateral rowcast.derive_sources(p.relation, p.depends_on) as s
    on conflict do nothing;
    for table_watched in
        select c.oid::regclass as name, w.publications
        from (
            select s.object, array_agg(s.publication order by s.publication) as publications
            from rowcast.sources as s where not s.is_function group by s.object
        ) as w
        join pg_class as c on c.oid = w.object and c.relkind in ('r', 'p')
        where not rowcast.is_watching(c.oid, w.publications)
           or exists (select from pg_trigger as t where t.tgrelid = c.oid and t.tgparentid = 0
                      and t.tgfoid = 'rowcast.watch()'::regprocedure and t.tgname ~ format('^!rowcast_watch_%s_', c.oid)
                      and rowcast.watched_for(t.tgargs) <> w.publications)
        order by c.oid
    loop
        execute format('lock table %s in share row exclusive mode', table_watched.name);
        perform rowcast.install_watch(table_watched.name, table_watched.publications);
    end loop;
    -- Of tables that nothing depends on any more, and what a restored dump has left under other numbers.
    for table_watched in
        select t.tgrelid::regclass as name, t.tgname as trigger
        from pg_trigger as t
        where t.tgfoid = 'rowcast.watch()'::regprocedure and t.tgparentid = 0
          and not exists (
              select from rowcast.sources as s
              where not s.is_function and t.tgname ~ format('^!rowcast_watch_%s_', s.object)
                and (t.tgrelid = s.object or t.tgrelid in (select rowcast.descendants(s.object))))
        order by t.tgrelid
    loop
        execute format('drop trigger if exists %I on %s', table_watched.trigger, table_watched.name);
    end loop;
    return renewed;
end
$$;
comment on function rowcast.renew_watches() is
    'Derives anew what publications depend on, and makes watches what they should be. Keeps writers out of tables whose watch
changes. Gives the publications whose watches were not complete.';

create function rowcast.settle_watches() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '1s'
as $$
begin
    perform rowcast.renew_watches();
exception when lock_not_available then
    raise exception 'a table that is depended on is in use: it could not be locked within a second'
        using errcode = 'lock_not_available',
              hint = 'Nothing was changed. Try again when transactions that use it have ended.';
end
$$;
comment on function rowcast.settle_watches() is 'rowcast.renew_watches for publish and unpublish: waits a second at most.';
