-- What readers need to know, read in the snapshot of the rows that it explains.

create function rowcast.describe(only_name text default null) returns table (
    name text, generation bigint, id int, relation_oid oid, relation text, policy text, columns json, key int[],
    bulk_rows int, key_sql text, row_sql text, by_key_sql text, fingerprint text, is_intact boolean
)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select p.name, p.generation, p.id, c.oid, format('%s%I.%I', case c.relkind when 'r' then 'only ' else '' end, n.nspname, c.relname),
               p.policy, s.columns, s.key, p.bulk_rows, rowcast.key_sql(c.oid, p.key, 'r'),
               rowcast.row_sql(c.oid, s.names, p.key), rowcast.by_key_sql(c.oid, p.key),
               md5(concat_ws(' ', s.fingerprint, f.files, t.triggers, intact.is_intact)), intact.is_intact
        from rowcast.publications as p
        join pg_class as c on c.oid = p.relation
        join pg_namespace as n on n.oid = c.relnamespace
        -- The columns that still exist, in order.
        cross join lateral (
            select json_agg(json_build_object('name', w.name, 'type', rowcast.type_name(w.type)) order by w.number) as columns,
                   array_agg(w.name order by w.number) as names,
                   string_agg(format('%s %s %s %s', w.attnum, w.name, w.type, w.typmod), ',' order by w.number) as fingerprint,
                   (select array_agg(array_position(array_agg(w.name order by w.number), k.name) - 1 order by k.place)
                    from unnest(p.key) with ordinality as k (name, place)) as key
            from (
                select a.attname::text as name, a.atttypid as type, a.atttypmod as typmod, a.attnum,
                       row_number() over (order by coalesce(array_position(p.columns, a.attname::text), a.attnum)) as number
                from pg_attribute as a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                  and (p.columns is null or a.attname = any (p.columns))
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
        cross join lateral (select rowcast.is_intact(p.capture, c.oid) as is_intact) as intact
        where array_position(s.key, null) is null and (only_name is null or p.name = only_name);
end
$$;
comment on function rowcast.describe(text) is
    'One row for every publication (or the one named) whose table and key columns exist, with the SQL that reads its keys
and rows.
is_intact: every change is logged. fingerprint: differs when rows may have changed without a trigger.';

create function rowcast.catalogue_stamp() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        with recursive tree (relation) as (
            select p.relation::oid from rowcast.publications as p
            union
            select i.inhrelid from tree join pg_inherits as i on i.inhparent = tree.relation
        )
        select md5(string_agg(s.stamp, ' ')) from (
            select concat(p.ctid, p.xmin) as stamp from rowcast.publications as p
            union all
            select concat(c.oid, c.ctid, c.xmin, n.ctid, n.xmin)
            from tree join pg_class as c on c.oid = tree.relation join pg_namespace as n on n.oid = c.relnamespace
            union all
            select concat(a.ctid, a.xmin)
            from rowcast.publications as p join pg_attribute as a on a.attrelid = p.relation where a.attnum > 0
            union all
            select concat(t.ctid, t.xmin) from tree join pg_trigger as t on t.tgrelid = tree.relation
            union all
            select concat(f.ctid, f.xmin)
            from pg_proc as f join pg_namespace as n on n.oid = f.pronamespace
            where n.nspname = 'rowcast' and f.proname like 'capture\_%'
            union all
            select concat(i.ctid, i.xmin) from tree join pg_inherits as i on i.inhrelid = tree.relation
            union all
            select concat(s.ctid, s.xmin) from tree join pg_subscription_rel as s on s.srrelid = tree.relation
        ) as s
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
    returns table (publication int, key text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
begin
    return query
        select distinct c.publication, c.key from (
            select c.publication, c.key from rowcast.changes_0 as c where c.xid >= $1
            union all
            select c.publication, c.key from rowcast.changes_0 as c where c.xid = any ($2)
            union all
            select c.publication, c.key from rowcast.changes_1 as c where c.xid >= $1
            union all
            select c.publication, c.key from rowcast.changes_1 as c where c.xid = any ($2)
            union all
            select c.publication, c.key from rowcast.changes_2 as c where c.xid >= $1
            union all
            select c.publication, c.key from rowcast.changes_2 as c where c.xid = any ($2)
            union all
            select c.publication, c.key from rowcast.changes_3 as c where c.xid >= $1
            union all
            select c.publication, c.key from rowcast.changes_3 as c where c.xid = any ($2)
        ) as c where c.publication = any (publications);
end
$$;
comment on function rowcast.changed_keys(xid8, xid8[], int[]) is
    'The keys changed between an earlier snapshot, given by its xmax and xip, and this one, each once; null: any key.';
