-- publish and unpublish. Both keep writers out of the table while triggers change: no open writer may run an old function.

create function rowcast.lock_for_publishing(relation regclass) returns void
    language plpgsql volatile strict
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '1s'
as $$
begin
    lock table rowcast.publications in share row exclusive mode;
    -- A partitioned table locks its partitions with it, a view the tables under it. A materialised view cannot be locked,
    -- and nobody but REFRESH writes to it.
    if (select c.relkind from pg_class as c where c.oid = relation) in ('r', 'p', 'v') then
        execute format('lock table %s in share row exclusive mode', relation);
    end if;
exception when lock_not_available then
    raise exception '% is being written to: it could not be locked within a second', relation
        using errcode = 'lock_not_available',
              hint = 'Nothing was changed. Try again when transactions that write to it have ended.';
end
$$;
comment on function rowcast.lock_for_publishing(regclass) is
    'Waits at most a second for transactions that write to the table, and keeps new ones out until the end of this one.';

create function rowcast.log_marker(publication int) returns void
    language plpgsql volatile strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_current_xact_id();
    perform rowcast.ring();
    case rowcast.slice()
    when 0 then insert into rowcast.changes_0 (publication) values ($1);
    when 1 then insert into rowcast.changes_1 (publication) values ($1);
    when 2 then insert into rowcast.changes_2 (publication) values ($1);
    else insert into rowcast.changes_3 (publication) values ($1);
    end case;
end
$$;
comment on function rowcast.log_marker(int) is 'Logs that any key of a publication may have changed, and wakes the leader.';

create function rowcast.forget_dropped_tables() returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    orphan name;
begin
    delete from rowcast.publications as p where not exists (select from pg_class as c where c.oid = p.relation);
    for orphan in
        select f.proname from pg_proc as f join pg_namespace as n on n.oid = f.pronamespace
        where n.nspname = 'rowcast' and f.proname ~ '^capture_[0-9]+$'
          and not exists (select from rowcast.publications as p where 'capture_' || p.capture = f.proname)
    loop
        execute format('drop function rowcast.%I() cascade', orphan);
    end loop;
end
$$;
comment on function rowcast.forget_dropped_tables() is
    'Removes publications whose table is gone, and capture functions without a publication, with their triggers.';

create function rowcast.check_relation(relation regclass) returns void
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    class record;
begin
    select c.relkind, c.relpersistence, n.nspname into class
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = relation;
    if not found then
        raise exception 'there is no relation %', relation using errcode = 'undefined_table';
    elsif class.relkind not in ('r', 'p', 'v', 'm') then
        raise exception '% is neither a table nor a view', relation using errcode = 'wrong_object_type';
    elsif class.relpersistence = 't' then
        raise exception '% is temporary', relation using errcode = 'wrong_object_type',
            detail = 'Other sessions cannot see its rows.';
    elsif class.nspname in ('pg_catalog', 'information_schema', 'rowcast', 'pg_toast') then
        raise exception '% is a system %', relation, case class.relkind when 'v' then 'view' else 'table' end
            using errcode = 'wrong_object_type';
    elsif class.relkind = 'r' and exists (select from pg_inherits as i where i.inhparent = relation) then
        raise exception '% has inheritance children', relation using errcode = 'feature_not_supported',
            hint = 'Publish the children one by one, or make it a partitioned table.';
    elsif exists (select from pg_class as c where c.oid in (select rowcast.descendants(relation)) and c.relkind = 'f') then
        raise exception '% has partitions that are foreign tables', relation using errcode = 'feature_not_supported',
            detail = 'What changes on another server cannot be seen here.';
    end if;
end
$$;
comment on function rowcast.check_relation(regclass) is 'Raises an error for what cannot be published.';

create function rowcast.check_columns(relation regclass, columns text[], what text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    wrong text;
begin
    if cardinality(columns) = 0 or array_position(columns, null) is not null then
        raise exception '% of % must name columns', what, relation using errcode = 'invalid_parameter_value';
    end if;
    select c.name into wrong from unnest(columns) as c (name)
    where not exists (select from pg_attribute as a where a.attrelid = relation and a.attname = c.name and a.attnum > 0
                      and not a.attisdropped) limit 1;
    if found then
        raise exception '% has no column "%"', relation, wrong using errcode = 'undefined_column',
            detail = format('%s names it.', what);
    end if;
    select c.name into wrong from unnest(columns) as c (name) group by c.name having count(*) > 1 limit 1;
    if found then
        raise exception '% names the column "%" twice', what, wrong using errcode = 'duplicate_column';
    end if;
end
$$;
comment on function rowcast.check_columns(regclass, text[], text) is 'Raises an error unless all are columns, each once.';

create function rowcast.form_decoded(encoded text) returns text
    language sql immutable strict
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(convert_from(string_agg(
        case when p.part[1] ~ '^%[0-9a-fA-F]{2}$' then decode(substr(p.part[1], 2), 'hex') else convert_to(p.part[1], 'UTF8') end,
        '' order by p.place), 'UTF8'), '')
    from regexp_matches(replace($1, '+', ' '), '%[0-9a-fA-F]{2}|[^%]+|%', 'g') with ordinality as p (part, place)
$$;
comment on function rowcast.form_decoded(text) is 'Decodes a part of a query string: %2C and +.';

-- The grammar is that of the nodes (src/query/grammar.rs), which read the policy again whenever a channel opens. What only
-- they refused would be closed to everybody.
create function rowcast.policy_conditions(policy text) returns table (column_name text, operator text)
    language plpgsql immutable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    quoted constant text := '"(?:[^"\\]|\\.)*"';
    operators constant text := '^(?:not\.)?(eq|neq|gt|gte|lt|lte|in|like|ilike|is)\.';
    list_item constant text := '(?:' || quoted || '|[^,()"]+)';
    term text;
    key text;
    rest text;
    operand text;
    wanted text;
    depth int;
begin
    foreach term in array string_to_array(policy, '&') loop
        continue when term = '';
        if strpos(term, '=') = 0 then
            raise exception 'the policy cannot be read at "%"', term using errcode = 'invalid_parameter_value';
        end if;
        key := rowcast.form_decoded(split_part(term, '=', 1));
        rest := rowcast.form_decoded(substr(term, strpos(term, '=') + 1));
        depth := 0;
        if key in ('select', 'order', 'limit', 'offset', 'not', 'columns', 'on_conflict') then
            raise exception 'a policy has no "%"', key using errcode = 'invalid_parameter_value',
                detail = 'Policies are filters.';
        elsif key in ('and', 'or', 'not.and', 'not.or') then
            depth := 1;
            if left(rest, 1) <> '(' then
                raise exception 'the policy cannot be read at "%"', rest using errcode = 'invalid_parameter_value';
            end if;
            rest := substr(rest, 2);
        end if;
        loop
            -- Here a condition begins: all there is, or one of those in parentheses.
            if depth > 0 and rest ~ '^(?:not\.)?(?:and|or)\(' then
                depth := depth + 1;
                rest := regexp_replace(rest, '^(?:not\.)?(?:and|or)\(', '');
                if depth > 32 then
                    raise exception 'the policy has conditions more than 32 deep' using errcode = 'invalid_parameter_value';
                end if;
                continue;
            end if;
            if depth = 0 then
                column_name := key;
            else
                column_name := (regexp_match(rest, '^(' || quoted || '|[^,.:()"]+)\.'))[1];
                rest := substr(rest, length(column_name) + 2);
            end if;
            if left(column_name, 1) = '"' then
                column_name := case when column_name ~ ('^' || quoted || '$')
                    then regexp_replace(substr(column_name, 2, length(column_name) - 2), '\\(.)', '\1', 'g') end;
            end if;
            operator := (regexp_match(rest, operators))[1];
            if coalesce(column_name, '') = '' or operator is null then
                raise exception 'the policy cannot be read at "%"', coalesce(nullif(rest, ''), term)
                    using errcode = 'invalid_parameter_value', detail = format('The policy is %s', policy),
                          hint = 'public, authenticated, rls, or a filter such as tenant_id=eq.{tenant_id}.';
            end if;
            rest := regexp_replace(rest, operators, '');
            wanted := case
                when operator = 'is' then '(?:null|true|false|unknown)'
                when operator = 'in' then '(?:\{[^{}]+\}|\(' || list_item || '(?:,' || list_item || ')*\))'
                when depth = 0 and left(rest, 1) <> '"' then '.*'
                else '(?:' || quoted || '|[^,()"]*)'
            end;
            operand := (regexp_match(rest, '^(' || wanted || ')' || case when depth = 0 then '$' else '(?=[,)])' end))[1];
            if operand is null then
                raise exception 'the policy cannot be read at "%"', rest using errcode = 'invalid_parameter_value',
                    detail = format('The policy is %s', policy);
            end if;
            -- Outside of quotes braces stand for claims.
            if regexp_replace(operand, quoted, '', 'g') !~ '^(?:[^{}]|\{[^{}]+\})*$' then
                raise exception 'the policy has braces that are no claim: "%"', operand
                    using errcode = 'invalid_parameter_value', hint = 'tenant_id=eq.{tenant_id}, or name=eq."{braces}".';
            elsif operator like '%like' and octet_length(operand) > 1000 then
                raise exception 'the policy has a pattern of more than 1000 bytes' using errcode = 'invalid_parameter_value';
            end if;
            return next;
            exit when depth = 0;
            rest := substr(rest, length(operand) + 1);
            while depth > 0 and left(rest, 1) = ')' loop
                depth := depth - 1;
                rest := substr(rest, 2);
            end loop;
            exit when depth = 0 and rest = '';
            if depth = 0 or left(rest, 1) <> ',' then
                raise exception 'the policy cannot be read at "%"', rest using errcode = 'invalid_parameter_value',
                    detail = format('The policy is %s', policy);
            end if;
            rest := substr(rest, 2);
        end loop;
    end loop;
end
$$;
comment on function rowcast.policy_conditions(text) is
    'The columns that a filter policy names and what it asks of them, or an error that says where it cannot be read.';

create function rowcast.checked_policy(relation regclass, policy text) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    asked record;
    columns text[] := '{}';
    conditions int := 0;
begin
    if policy is null or policy = '' then
        raise exception 'a publication needs a policy' using errcode = 'null_value_not_allowed',
            hint = 'public, authenticated, rls, or a filter such as tenant_id=eq.{tenant_id}.';
    elsif policy = 'rls' and not coalesce((select c.relrowsecurity and c.relkind in ('r', 'p') from pg_class as c
                                           where c.oid = checked_policy.relation), false) then
        raise exception '% has no row security', checked_policy.relation using errcode = 'object_not_in_prerequisite_state',
            detail = 'The policy rls leaves it to Postgres who sees which rows.',
            hint = format('alter table %s enable row level security', checked_policy.relation);
    elsif policy in ('public', 'authenticated', 'rls') then
        return columns;
    elsif octet_length(policy) > 65536 then
        raise exception 'the policy has more than 65536 bytes' using errcode = 'invalid_parameter_value';
    end if;
    for asked in
        select c.column_name, c.operator, a.type, rowcast.type_name(a.type) as type_name, rowcast.type_kind(a.type) as kind
        from rowcast.policy_conditions(policy) as c
        left join lateral (
            select rowcast.base_type(a.atttypid) as type from pg_attribute as a
            where a.attrelid = relation and a.attname = c.column_name and a.attnum > 0 and not a.attisdropped
        ) as a on true
    loop
        if asked.type is null then
            raise exception 'the policy filters by "%", which is not a column of %', asked.column_name, relation
                using errcode = 'undefined_column';
        elsif (asked.kind = 'other' and asked.operator <> 'is') or not (case
            when asked.operator = 'is' then asked.type_name not in ('json', 'jsonb')
            when asked.operator in ('like', 'ilike') then asked.type_name in ('text', 'varchar', 'name', 'bpchar')
            when asked.kind = 'enum' or asked.type_name = 'jsonb' then asked.operator in ('eq', 'neq', 'in')
            else asked.type_name in ('bool', 'int2', 'int4', 'int8', 'oid', 'numeric', 'float4', 'float8', 'text', 'varchar',
                'name', 'bpchar', 'uuid', 'date', 'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea')
            end)
        then
            raise exception 'the policy asks "%" of "%", of type %', asked.operator, asked.column_name, asked.type_name
                using errcode = 'feature_not_supported', detail = 'This cannot be told exactly outside of the database.';
        end if;
        conditions := conditions + 1;
        if asked.column_name <> all (columns) then
            columns := columns || asked.column_name;
        end if;
    end loop;
    if conditions not between 1 and 256 then
        raise exception 'a policy has between 1 and 256 conditions' using errcode = 'invalid_parameter_value';
    end if;
    return columns;
end
$$;
comment on function rowcast.checked_policy(regclass, text) is
    'The columns that a policy names, or an error: it does not parse, or asks what cannot be told.';

create function rowcast.checked_key(relation regclass, key text[]) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    found_key text[];
begin
    if (select c.relkind from pg_class as c where c.oid = relation) in ('v', 'm') then
        if key is null then
            raise exception '% is a view, so it needs a key', relation using errcode = 'invalid_parameter_value',
                hint = 'Name columns that are unique and not null in its rows: key => ''{column}''.';
        end if;
        -- That they are unique and not null nobody can prove; the leader looks whenever it runs the view.
        perform rowcast.check_columns(relation, key, 'key');
        return key;
    end if;
    if key is null then
        select array_agg(a.attname::text order by k.place) into found_key
        from pg_index as i
        cross join unnest(i.indkey) with ordinality as k (number, place)
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
        where i.indrelid = relation and i.indisprimary and k.place <= i.indnkeyatts;
        if found_key is null then
            raise exception '% has no primary key', relation using errcode = 'invalid_table_definition',
                hint = 'Name columns that are unique and not null: key => ''{column}''.';
        end if;
        return found_key;
    end if;
    perform rowcast.check_columns(relation, key, 'key');
    if exists (select from pg_attribute as a where a.attrelid = relation and a.attname = any (key) and not a.attnotnull
               and not a.attisdropped) then
        raise exception 'the key of % has columns that may be null', relation using errcode = 'invalid_parameter_value',
            detail = format('The key is %s.', key), hint = 'alter table … alter column … set not null';
    end if;
    if not exists (
        select from pg_index as i
        where i.indrelid = relation and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
          and not exists (
              select from unnest(i.indkey) with ordinality as k (number, place)
              join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
              where k.place <= i.indnkeyatts and a.attname <> all (key))
    ) then
        raise exception 'the key of % is not unique', relation using errcode = 'invalid_parameter_value',
            detail = format('No unique index covers %s.', key), hint = 'create unique index on … (…)';
    end if;
    return key;
end
$$;
comment on function rowcast.checked_key(regclass, text[]) is 'The key to use, or an error: unique, not null, there.';

create function rowcast.publish(
    relation regclass,
    policy text,
    name text default null,
    columns text[] default null,
    key text[] default null,
    bulk_rows int default 10000,
    refresh_ms int default 250,
    depends_on regclass[] default null
) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    published_name text;
    published_key text[];
    published_columns text[];
    named_columns text[];
    earlier rowcast.publications;
    published rowcast.publications;
begin
    if publish.relation is null then
        raise exception 'publish needs a relation' using errcode = 'null_value_not_allowed';
    end if;
    perform rowcast.check_relation(publish.relation);
    perform rowcast.check_sources(publish.relation, publish.depends_on);
    published_name := coalesce(publish.name, (select c.relname from pg_class as c where c.oid = publish.relation));
    if published_name !~ '^[a-z0-9_.-]{1,63}$' then
        raise exception '"%" cannot be the name of a publication', published_name using errcode = 'invalid_name',
            detail = 'Names have 1 to 63 characters of a-z, 0-9, "_", "." and "-".', hint = 'name => ''…''';
    end if;
    if coalesce(publish.bulk_rows, -1) < 0 or coalesce(publish.refresh_ms, -1) < 0 then
        raise exception 'bulk_rows and refresh_ms cannot be negative or null' using errcode = 'invalid_parameter_value';
    end if;
    if publish.policy = 'rls' and (select c.relkind from pg_class as c where c.oid = publish.relation) in ('v', 'm') then
        raise exception 'row security cannot decide about a view' using errcode = 'feature_not_supported',
            detail = 'A view is run once for everybody, by the server.', hint = 'Filter by its columns: policy => ''column=eq.{claim}''.';
    end if;
    named_columns := rowcast.checked_policy(publish.relation, publish.policy);

    perform rowcast.lock_for_publishing(publish.relation);
    perform rowcast.check_relation(publish.relation);
    perform rowcast.check_sources(publish.relation, publish.depends_on);
    perform rowcast.forget_dropped_tables();
    select p.* into earlier from rowcast.publications as p where p.name = published_name;
    if earlier.relation <> publish.relation then
        raise exception 'the name "%" is taken by a publication of %', published_name, earlier.relation
            using errcode = 'duplicate_object',
                  hint = format('name => ''…'', or first select rowcast.unpublish(%L).', published_name);
    end if;
    published_key := rowcast.checked_key(publish.relation, publish.key);
    if publish.columns is null then
        select array_agg(a.attname::text order by a.attnum) into published_columns
        from pg_attribute as a where a.attrelid = publish.relation and a.attnum > 0 and not a.attisdropped;
    elsif publish.columns <> '{*}' then
        perform rowcast.check_columns(publish.relation, publish.columns, 'columns');
        select array_agg(k.name order by k.place) || publish.columns into published_columns
        from unnest(published_key) with ordinality as k (name, place) where k.name <> all (publish.columns);
    end if;

    insert into rowcast.publications as p
        (name, relation, policy, policy_columns, columns, key, bulk_rows, refresh_ms, depends_on, generation, capture)
    values (published_name, publish.relation, publish.policy, named_columns, published_columns, published_key, publish.bulk_rows,
            publish.refresh_ms, publish.depends_on, nextval('rowcast.version'),
            coalesce((select min(o.capture) from rowcast.publications as o where o.relation = publish.relation), 0))
    on conflict (name) do update set
        policy = excluded.policy, policy_columns = excluded.policy_columns, columns = excluded.columns, key = excluded.key, bulk_rows = excluded.bulk_rows,
        refresh_ms = excluded.refresh_ms, depends_on = excluded.depends_on, generation = excluded.generation,
        published_at = now()
    returning p.* into published;
    if published.capture = 0 then
        update rowcast.publications as p set capture = p.id where p.id = published.id returning p.* into published;
    end if;
    if (select c.relkind from pg_class as c where c.oid = publish.relation) in ('r', 'p') then
        perform rowcast.install_capture(published.capture, published.relation);
    end if;
    perform rowcast.settle_watches();
    perform rowcast.log_marker(published.id);
    perform rowcast.warn_of_privileges(published.relation);
end
$$;
comment on function rowcast.publish(regclass, text, text, text[], text[], int, int, regclass[]) is
    'Makes a table or a view available to clients under a name. The same name on the same relation replaces the settings.';

create function rowcast.unpublish(name text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    gone rowcast.publications;
begin
    select p.* into gone from rowcast.publications as p where p.name = unpublish.name;
    if not found then
        raise exception 'there is no publication "%"', unpublish.name using errcode = 'undefined_object';
    end if;
    if exists (select from pg_class as c where c.oid = gone.relation) then
        perform rowcast.lock_for_publishing(gone.relation);
    end if;
    delete from rowcast.publications as p where p.id = gone.id;
    perform rowcast.log_marker(gone.id);
    if exists (select from rowcast.publications as p where p.capture = gone.capture)
       and (select c.relkind from pg_class as c where c.oid = gone.relation) in ('r', 'p') then
        perform rowcast.install_capture(gone.capture, gone.relation);
    end if;
    perform rowcast.forget_dropped_tables();
    perform rowcast.settle_watches();
end
$$;
comment on function rowcast.unpublish(text) is 'Ends a publication. With a table''s last one its triggers go, and watches that nothing else needs.';
