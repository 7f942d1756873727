-- The triggers that write the change log. Each published table has a function of its own, made of static SQL by
-- rowcast.capture_body; all its publications share it.
--
-- What a capture function promises the writer: it never fails his statement. Keys are worked out in a block that catches
-- everything, also a key column that was renamed or dropped since; then a row without a key is logged, which says "any
-- key". That block writes nothing, so it costs no transaction id of its own. It has no WHEN clause and depends on no
-- column, so that ALTER TABLE goes on as if it were not there.
--
-- Advisory locks, in the two-number form; the first number is 'rowc' in ASCII: 1919907683. Second number 1: the leader's
-- lease. 2: the leader is awake, it polls and needs no bell.
--
-- The usual statement, of few keys while the leader is awake, costs its writer one query for the keys, new and old, one
-- expression for everything else there is to know, and one insert of one row. An expression more costs a microsecond or two,
-- a query ten, so nothing is told apart here that the leader can tell: a key that did not change is logged twice. What is not
-- usual is left to the part behind, and to rowcast.log_keys.
--
-- A capture function has no SET clause: that would cost seven microseconds, an eighth of an update. Its search_path is pinned
-- in another way. Every function, operator, type and table is named with its schema, so that the writer's search_path has no
-- say in what runs. Only keys whose text depends on settings have the clause, see rowcast.capture_settings.

create function rowcast.ring() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_try_advisory_lock_shared(1919907683, 2) and pg_advisory_unlock_shared(1919907683, 2)
       and not (pg_try_advisory_lock_shared(1919907683, 1) and pg_advisory_unlock_shared(1919907683, 1))
       and (current_setting('max_prepared_transactions') = '0' or current_setting('rowcast.doorbell', true) = 'on')
       and pg_notification_queue_usage() < 0.5
    then
        perform pg_notify('rowcast', '');
    end if;
end
$$;
comment on function rowcast.ring() is
    'Wakes the leader if there is one and it sleeps. NOTIFY makes commits wait for each other, so nobody rings in vain.
The caller has a transaction id by then: that is how the leader finds those who did not ring.';

create function rowcast.descendants(relation oid) returns setof oid
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        with recursive tree (relation) as (
            select $1 union select i.inhrelid from tree join pg_inherits as i on i.inhparent = tree.relation
        )
        select tree.relation from tree where tree.relation <> $1;
end
$$;
comment on function rowcast.descendants(oid) is 'The partitions below a table, on all levels.';

create function rowcast.needs_row_triggers(relation oid) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select c.relkind = 'p' or c.relispartition
            or exists (select from pg_inherits as i where i.inhrelid = c.oid)
            or exists (select from pg_subscription_rel as s where s.srrelid = c.oid)
        from pg_class as c where c.oid = $1
    );
end
$$;
comment on function rowcast.needs_row_triggers(oid) is
    'Whether rows of the table change in statements that name another table (a parent), or in none (logical replication):
triggers on statements do not fire then.';

create function rowcast.log_keys(publications int[], keys text[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    insert_into constant text := 'insert into rowcast.changes_%s (publication, keys) select p, string_agg(k.key, E''\n'')'
        ' from unnest($2) with ordinality as k (key, place), unnest($1) as p group by p, (k.place - 1) / 100';
begin
    if cardinality(keys) = 0 then
        return;
    end if;
    perform pg_current_xact_id();
    if pg_try_advisory_lock_shared(1919907683, 2) and pg_advisory_unlock_shared(1919907683, 2) then
        -- No leader is awake: perhaps nobody has followed for long.
        if not rowcast.is_followed() then
            return;
        end if;
        begin
            perform rowcast.ring();
        exception when others then
            null;
        end;
    end if;
    execute format(insert_into, rowcast.slice()) using publications, keys;
end
$$;
comment on function rowcast.log_keys(int[], text[]) is
    'Logs that keys of publications changed (any key, where one of them is null), and wakes the leader if it sleeps. What
capture functions do with statements that are not usual.';

create function rowcast.capture_body(capture int, row_level boolean) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- A line has at least three characters and an end: so many rows are always more than so many bytes.
    usual_bytes constant int := 8000;
    usual_rows constant int := 2001;
    keys record;
    id int;
    variables text := '';
    on_insert text := '';
    on_update text := '';
    on_delete text := '';
    unusual text := '';
    log_into text := '';
    forget text := '';
    many text := '';
    any_key text := '';
    log_many text := '';
begin
    -- Publications with the same key share the work; the largest bulk_rows counts, the leader applies each one's own.
    for keys in
        select row_number() over (order by min(p.id)) as number, array_agg(p.id order by p.id) as ids,
               max(p.bulk_rows) as bulk_rows, p.relation, p.key
        from rowcast.publications as p where p.capture = capture_body.capture group by p.relation, p.key
    loop
        variables := variables || format(E'    keys_%1$s pg_catalog.text;\n    many_%1$s pg_catalog.text[];\n', keys.number);
        if row_level then
            on_insert := on_insert || format(E'            keys_%s := %s;\n', keys.number,
                                             rowcast.key_sql(keys.relation, keys.key, 'new'));
            on_update := on_update || format(E'            keys_%s := pg_catalog.concat(%s, E''\\n'', %s);\n', keys.number,
                                             rowcast.key_sql(keys.relation, keys.key, 'new'),
                                             rowcast.key_sql(keys.relation, keys.key, 'old'));
            on_delete := on_delete || format(E'            keys_%s := %s;\n', keys.number,
                                             rowcast.key_sql(keys.relation, keys.key, 'old'));
            many := many || format(E'            many_%1$s := array[keys_%1$s];\n', keys.number);
        else
            on_insert := on_insert || format(
                E'            keys_%s := pg_catalog.array_to_string(array(\n'
                '                select %s from new_rows as r limit %s), E''\\n'');\n',
                keys.number, rowcast.key_sql(keys.relation, keys.key, 'r'), usual_rows);
            on_update := on_update || format(
                E'            keys_%1$s := pg_catalog.array_to_string(array(\n'
                '                select %2$s from new_rows as r\n'
                '                union all select %2$s from old_rows as r limit %3$s), E''\\n'');\n',
                keys.number, rowcast.key_sql(keys.relation, keys.key, 'r'), usual_rows);
            on_delete := on_delete || format(
                E'            keys_%s := pg_catalog.array_to_string(array(\n'
                '                select %s from old_rows as r limit %s), E''\\n'');\n',
                keys.number, rowcast.key_sql(keys.relation, keys.key, 'r'), usual_rows);
            many := many || rowcast.collect_sql(keys.number, keys.relation, keys.key, keys.bulk_rows, usual_bytes);
            unusual := unusual || format('keys_%s operator(pg_catalog.=) '''' or ', keys.number);
        end if;
        unusual := unusual || format('pg_catalog.octet_length(keys_%s) operator(pg_catalog.>) %s or ', keys.number, usual_bytes);
        forget := forget || format(E'        keys_%s := null;\n', keys.number);
        any_key := any_key || format(E'            many_%s := array[null]::pg_catalog.text[];\n', keys.number);
        log_many := log_many || format(E'        perform rowcast.log_keys(%L, many_%s);\n', keys.ids, keys.number);
        foreach id in array keys.ids loop
            log_into := log_into || format(E'        insert into rowcast.changes_%%1$s (publication, keys) values (%s, keys_%s);\n',
                                           id, keys.number);
        end loop;
    end loop;
    return format($body$
declare
    old_keys pg_catalog.text[];
    slice pg_catalog.int8;
%1$sbegin
    begin
        if tg_op operator(pg_catalog.=) 'UPDATE' then
%3$s        elsif tg_op operator(pg_catalog.=) 'INSERT' then
%2$s        elsif tg_op operator(pg_catalog.=) 'DELETE' then
%4$s        end if;
        -- -1: no rows, many keys, or no leader is awake. The transaction has an id by now, because it changed rows.
        slice := case
            when %5$spg_catalog.pg_try_advisory_lock_shared(1919907683, 2)
                and pg_catalog.pg_advisory_unlock_shared(1919907683, 2) then -1
            else (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog./) 300)::pg_catalog.int8
                operator(pg_catalog.%%) 4
            end;
    exception when others then
%6$s        slice := -1;
    end;
    if slice operator(pg_catalog.=) 0 then
%7$s    elsif slice operator(pg_catalog.=) 1 then
%8$s    elsif slice operator(pg_catalog.=) 2 then
%9$s    elsif slice operator(pg_catalog.=) 3 then
%10$s    else
        begin
%11$s        exception when others then
%12$s        end;
%13$s    end if;
    return null;
end
$body$, variables, on_insert, on_update, on_delete, unusual, forget, format(log_into, 0), format(log_into, 1),
        format(log_into, 2), format(log_into, 3), many, any_key, log_many);
end
$$;
comment on function rowcast.capture_body(int, boolean) is
    'The text of a table''s capture function, for all its publications as they are now.';

create function rowcast.collect_sql(number bigint, relation oid, key text[], bulk_rows int, usual_bytes int) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($many$            many_%1$s := array[keys_%1$s];
            if keys_%1$s operator(pg_catalog.=) '' then
                many_%1$s := array[]::pg_catalog.text[];
            elsif pg_catalog.octet_length(keys_%1$s) operator(pg_catalog.>) %2$s then
                if tg_op operator(pg_catalog.=) 'DELETE' then
                    many_%1$s := array(select %4$s from old_rows as r limit %3$s);
                else
                    many_%1$s := array(select %4$s from new_rows as r limit %3$s);
                end if;
                if pg_catalog.cardinality(many_%1$s) operator(pg_catalog.=) %3$s then
                    many_%1$s := array[null]::pg_catalog.text[];
                elsif tg_op operator(pg_catalog.=) 'UPDATE' then
                    -- Both lists are in the order of the rows: they are equal unless a key changed.
                    old_keys := array(select %4$s from old_rows as r);
                    if many_%1$s operator(pg_catalog.<>) old_keys then
                        many_%1$s := array(select distinct k from pg_catalog.unnest(
                            many_%1$s operator(pg_catalog.||) old_keys) as k);
                    end if;
                end if;
            end if;
$many$, $1, $5, $4::bigint + 1, rowcast.key_sql($2, $3, 'r'));
end
$$;
comment on function rowcast.collect_sql(bigint, oid, text[], int, int) is
    'plpgsql that collects the keys of a statement''s rows where they are more than so many bytes: at most bulk_rows of them,
or one null for more.';

create function rowcast.capture_settings(capture int) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case when bool_or(t.type <> all (array['int2', 'int4', 'int8', 'numeric', 'uuid', 'text', 'varchar', 'bpchar',
                                                     'bool', 'date']::regtype[]))
            then ' set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO'' set intervalstyle = ''iso_8601'' set bytea_output = ''hex'''
                 ' set extra_float_digits = 1 set lc_monetary = ''C'''
            else '' end
        from rowcast.publications as p
        cross join unnest(p.key) as k (name)
        join pg_attribute as a on a.attrelid = p.relation and a.attname = k.name and not a.attisdropped
        cross join lateral (select rowcast.base_type(a.atttypid) as type) as t
        where p.capture = $1
    );
end
$$;
comment on function rowcast.capture_settings(int) is
    'The settings a capture function pins because its keys'' text would depend on the writer''s; they cost time, so only then.';

create function rowcast.write_capture_function(capture int, row_level boolean) returns void
    language plpgsql volatile strict security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('create or replace function rowcast.%I() returns trigger language plpgsql security definer%s as %L',
                   'capture_' || capture, rowcast.capture_settings(capture), rowcast.capture_body(capture, row_level));
end
$$;
comment on function rowcast.write_capture_function(int, boolean) is
    'Makes or renews a table''s capture function. It belongs to the owner of this one, whoever publishes: what it may do does not
change when a publisher''s privileges do.';

create function rowcast.install_capture(capture int, relation regclass) returns void
    language plpgsql volatile strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    row_level constant boolean := rowcast.needs_row_triggers(relation);
    prefix constant text := '!rowcast_' || capture;
    calls constant text := format('execute function rowcast.%I()', 'capture_' || capture);
    leaf regclass;
    wrong name;
begin
    perform rowcast.write_capture_function(capture, row_level);
    for wrong in
        select t.tgname from pg_trigger as t
        where t.tgrelid = relation and t.tgname in (prefix || '_insert', prefix || '_update', prefix || '_delete') and row_level
           or t.tgrelid = relation and t.tgname = prefix || '_row' and t.tgparentid = 0 and not row_level
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
        execute format('create or replace trigger %I after update on %s referencing old table as old_rows new table as new_rows'
                       ' for each statement %s', prefix || '_update', relation, calls);
        execute format('create or replace trigger %I after delete on %s referencing old table as old_rows for each statement %s',
                       prefix || '_delete', relation, calls);
        execute format('alter table %1$s enable always trigger %2$I, enable always trigger %3$I, enable always trigger %4$I',
                       relation, prefix || '_insert', prefix || '_update', prefix || '_delete');
    end if;
    -- Triggers on TRUNCATE are not passed on to partitions.
    for leaf in select relation union all select rowcast.descendants(relation) loop
        execute format('create or replace trigger %I after truncate on %s for each statement %s',
                       prefix || '_truncate', leaf, calls);
        execute format('alter table only %s enable always trigger %I', leaf, prefix || '_truncate');
    end loop;
end
$$;
comment on function rowcast.install_capture(int, regclass) is
    'Makes a table''s capture function and its triggers, or renews them. The caller holds a lock that keeps writers out.';

create function rowcast.is_intact(capture int, relation oid) returns boolean
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        -- TRUNCATE is not looked at: it changes the storage, which the fingerprint shows.
        select count(*) = case when w.row_level then 1 + w.descendants else 3 end
           and exists (select from pg_proc as f join pg_namespace as n on n.oid = f.pronamespace
                       where n.nspname = 'rowcast' and f.proname = 'capture_' || $1
                         and f.prosrc = rowcast.capture_body($1, w.row_level))
        from (select rowcast.needs_row_triggers($2) as row_level,
                     (select count(*) from rowcast.descendants($2)) as descendants) as w
        left join pg_trigger as t
            on (t.tgrelid = $2 or t.tgrelid in (select rowcast.descendants($2))) and t.tgenabled in ('A', 'O')
            and case when w.row_level then t.tgname = format('!rowcast_%s_row', $1)
                     else t.tgname in (format('!rowcast_%s_insert', $1), format('!rowcast_%s_update', $1),
                                       format('!rowcast_%s_delete', $1)) end
        group by w.row_level, w.descendants
    );
end
$$;
comment on function rowcast.is_intact(int, oid) is
    'Whether every change of the table is logged: all triggers are there and enabled, and the function is what it would be
if it were written now.';

create function rowcast.renew_capture() returns int[]
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    old record;
    renewed int[] := array[]::int[];
begin
    for old in
        select p.capture, rowcast.needs_row_triggers(p.relation) as row_level, array_agg(p.id) as ids
        from rowcast.publications as p
        join pg_namespace as n on n.nspname = 'rowcast'
        join pg_proc as f on f.pronamespace = n.oid and f.proname = 'capture_' || p.capture
        where exists (select from pg_class as c where c.oid = p.relation)
          and not exists (select from unnest(p.key) as k (name) where not exists (
              select from pg_attribute as a where a.attrelid = p.relation and a.attname = k.name and not a.attisdropped))
        group by p.capture, p.relation, f.prosrc
        having f.prosrc <> rowcast.capture_body(p.capture, rowcast.needs_row_triggers(p.relation))
    loop
        perform rowcast.write_capture_function(old.capture, old.row_level);
        renewed := renewed || old.ids;
    end loop;
    return renewed;
end
$$;
comment on function rowcast.renew_capture() is
    'Writes capture functions again that are not what they should be, as after a change of a key column''s type, and gives
the publications concerned. Transactions then running may have used the old ones: a resync has to follow them.';
