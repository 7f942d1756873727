-- How values and keys are written as JSON. Triggers, the leader and the nodes use the expressions made here, so that a
-- key has one text everywhere. The expressions name everything with its schema: they mean the same in every session.
-- All of them are over one row of the table, under an alias.

create function rowcast.base_type(type oid) returns oid
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    under oid;
begin
    loop
        under := (select t.typbasetype from pg_type as t where t.oid = type and t.typtype = 'd');
        exit when under is null;
        type := under;
    end loop;
    return type;
end
$$;
comment on function rowcast.base_type(oid) is 'The type under a domain, and under the domains below it.';

create function rowcast.element_type(type oid) returns oid
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return rowcast.base_type((select t.typelem from pg_type as t
        where t.oid = rowcast.base_type(type) and t.typcategory = 'A' and t.typelem <> 0));
end
$$;
comment on function rowcast.element_type(oid) is 'The base type of an array''s elements; null if the type is not an array.';

create function rowcast.type_name(type oid) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    element constant oid := rowcast.element_type(type);
begin
    return (select t.typname || case when element is null then '' else '[]' end
            from pg_type as t where t.oid = coalesce(element, rowcast.base_type(type)));
end
$$;
comment on function rowcast.type_name(oid) is 'The name of a type as clients see it: int4, numeric[].';

create function rowcast.type_kind(type oid) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            when t.typnamespace = 'pg_catalog'::regnamespace then 'builtin'
            when t.typtype = 'e' and rowcast.element_type(type) is null then 'enum'
            else 'other' end
        from pg_type as t where t.oid = coalesce(rowcast.element_type(type), rowcast.base_type(type))
    );
end
$$;
comment on function rowcast.type_kind(oid) is
    'builtin: a type of Postgres itself or an array of it, known by its name. enum. other: everything else.';

create function rowcast.cast_name(type oid) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select format('%I.%I', n.nspname, t.typname)
            from pg_type as t join pg_namespace as n on n.oid = t.typnamespace where t.oid = rowcast.base_type(type));
end
$$;
comment on function rowcast.cast_name(oid) is 'The base type as SQL has it, with its schema: pg_catalog.int4.';

create function rowcast.value_sql(value text, type oid) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return value || case
        when rowcast.base_type(type) in ('int8'::regtype, 'numeric'::regtype) then '::pg_catalog.text'
        when rowcast.element_type(type) in ('int8'::regtype, 'numeric'::regtype) then '::pg_catalog.text[]'
        else ''
    end;
end
$$;
comment on function rowcast.value_sql(text, oid) is
    'SQL for what to_json should be given: int8 and numeric become text, so that no reader loses a digit.';

create function rowcast.key_sql(relation oid, key text[], alias text) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format('pg_catalog.concat(''['', %s, '']'')', string_agg(
            case
                when t.type in ('int2'::regtype, 'int4'::regtype) then t.value
                when t.type in ('int8'::regtype, 'numeric'::regtype, 'uuid'::regtype) then format('''"'', %s, ''"''', t.value)
                else format('pg_catalog.to_json(%s)::pg_catalog.text', rowcast.value_sql(t.value, t.type))
            end, ', '','', ' order by k.place))
        from unnest($2) with ordinality as k (name, place)
        join pg_attribute as a on a.attrelid = $1 and a.attname = k.name and a.attnum > 0 and not a.attisdropped
        cross join lateral (select rowcast.base_type(a.atttypid) as type, format('%s.%I', $3, a.attname) as value) as t
    );
end
$$;
comment on function rowcast.key_sql(oid, text[], text) is
    'SQL for the key of the row `alias` as compact JSON text: [1], ["a","2"].';

create function rowcast.by_key_sql(relation oid, key text[]) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        with part as (
            select k.place, format('r.%I operator(%I.=)', a.attname, coalesce(o.nspname, 'pg_catalog')) as compared,
                   format('pg_catalog.json_array_element_text(k::pg_catalog.json, %s)::%s', k.place - 1,
                          format_type(rowcast.base_type(a.atttypid), -1)) as wanted
            from unnest($2) with ordinality as k (name, place)
            join pg_attribute as a on a.attrelid = $1 and a.attname = k.name and a.attnum > 0 and not a.attisdropped
            left join lateral (
                select n.nspname from pg_opclass as c join pg_namespace as n on n.oid = c.opcnamespace
                where c.opcmethod = 403 and c.opcdefault and c.opcintype = rowcast.base_type(a.atttypid) limit 1
            ) as o on true
        )
        select case count(*)
            when 1 then format('%s any (array(select %s from pg_catalog.unnest($1::pg_catalog.text[]) as k))',
                               min(compared), min(wanted))
            else format('exists (select from pg_catalog.unnest($1::pg_catalog.text[]) as k where %s)',
                        string_agg(compared || ' ' || wanted, ' and ' order by place))
        end
        from part
    );
end
$$;
comment on function rowcast.by_key_sql(oid, text[]) is 'SQL: the key of the row `r` is one of the key texts in $1.';

create function rowcast.row_sql(relation oid, columns text[], key text[]) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    large_bytes constant int := 1048576;
    -- A function takes at most 100 arguments: wide rows are made in pieces.
    piece constant int := 90;
    plain text;
    cut text;
    any_large text;
    sizes text;
begin
    with shown as (
        select k.place, a.attname, rowcast.value_sql(format('r.%I', a.attname), a.atttypid) as value,
               case
                   when a.attname = any (key) or a.attlen <> -1 or b.type in ('numeric'::regtype) then null
                   when b.type in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bytea'::regtype)
                       then format('pg_catalog.octet_length(r.%I)', a.attname)
                   -- The stored size is the compressed one, and nothing shrinks to less than a 256th.
                   else format('case when pg_catalog.pg_column_size(r.%1$I) > 4000'
                               ' then pg_catalog.octet_length(r.%1$I::pg_catalog.text) else 0 end', a.attname)
               end as bytes
        from unnest(columns) with ordinality as k (name, place)
        join pg_attribute as a on a.attrelid = relation and a.attname = k.name and a.attnum > 0 and not a.attisdropped
        cross join lateral (select rowcast.base_type(a.atttypid) as type) as b
    ), pieces as (
        select (place - 1) / piece as number,
               format('pg_catalog.json_build_array(%s)::pg_catalog.text', string_agg(value, ', ' order by place)) as plain,
               format('pg_catalog.json_build_array(%s)::pg_catalog.text', string_agg(
                   case when bytes is null then value
                        else format('case when %s > %s then null else %s end', bytes, large_bytes, value)
                   end, ', ' order by place)) as cut,
               string_agg(format('%s > %s', bytes, large_bytes), ' or ' order by place) filter (where bytes is not null)
                   as any_large,
               format('nullif(pg_catalog.concat_ws('','', %s), '''')', string_agg(
                   format('case when %s > %s then pg_catalog.concat(%L, %s) end', bytes, large_bytes,
                          to_json(attname::text)::text || ':', bytes), ', ' order by place)
                   filter (where bytes is not null)) as sizes
        from shown group by 1
    )
    select rowcast.joined_arrays(array_agg(p.plain order by p.number)), rowcast.joined_arrays(array_agg(p.cut order by p.number)),
           string_agg(p.any_large, ' or ' order by p.number),
           string_agg(p.sizes, ', ' order by p.number) filter (where p.any_large is not null)
    into plain, cut, any_large, sizes
    from pieces as p;
    if any_large is null then
        return plain;
    end if;
    return format('case when %s then pg_catalog.concat(pg_catalog.left(%s, -1), '',{'', pg_catalog.concat_ws('','', %s), ''}]'') else %s end',
                  any_large, cut, sizes, plain);
end
$$;
comment on function rowcast.row_sql(oid, text[], text[]) is
    'SQL for the values of the row `r` as a JSON array. Values over 1 MiB are null in it, and an object at its end names
them with their sizes in bytes; key columns are never cut.';

create function rowcast.joined_arrays(arrays text[]) returns text
    language sql immutable strict
    set search_path = pg_catalog, pg_temp
as $$
    select case cardinality($1)
        when 1 then $1[1]
        else format('pg_catalog.concat(''['', %s, '']'')',
            (select string_agg(format('pg_catalog.substr(pg_catalog.left(%s, -1), 2)', a.sql), ', '','', ' order by a.place)
             from unnest($1) with ordinality as a (sql, place)))
    end
$$;
comment on function rowcast.joined_arrays(text[]) is 'SQL that joins the texts of several JSON arrays to one.';
