-- What the leader writes here as it delivers: how far it came, that it lives, and which slices it emptied.

create function rowcast.acknowledge(snapshot text, version bigint, epoch text, at timestamptz) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Losing the last of these in a crash costs nothing: a crash begins a new epoch.
    perform set_config('synchronous_commit', 'off', true);
    update rowcast.state as s
    set acknowledged_snapshot = $1, acknowledged_version = $2, acknowledged_epoch = $3, acknowledged_at = $4;
end
$$;
comment on function rowcast.acknowledge(text, bigint, text, timestamptz) is 'Everything this cut sees is in the store.';

create function rowcast.is_lapsed() returns boolean
    language sql volatile
    set search_path = pg_catalog, pg_temp
    return (select p.at < clock_timestamp() - p.log_keep * 0.9 from rowcast.pulse as p);
comment on function rowcast.is_lapsed() is
    'Whether triggers may have stopped logging since the last sign of life; a tenth early, for clocks that are corrected.';

create function rowcast.show_life() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.pulse as p set at = clock_timestamp();
end
$$;
comment on function rowcast.show_life() is 'A leader delivers, or is about to: changes are to be logged.';

create function rowcast.running_transactions() returns text[]
    language sql volatile
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(array_agg(r.name), array[]::text[]) from (
        select l.virtualtransaction as name
        from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
        where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and a.datname = current_database()
          and a.pid <> pg_backend_pid() and a.backend_type is distinct from 'autovacuum worker'
        union all
        select 'prepared ' || t.transaction::text from pg_prepared_xacts as t where t.database = current_database()
    ) as r
$$;
comment on function rowcast.running_transactions() is
    'Names of the transactions of this database that have not ended. What a session is, only some roles may know: then it counts.';

create function rowcast.empty_slices(snapshot text, epoch text) returns int
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    now_written constant int := rowcast.slice();
    seen constant pg_snapshot := snapshot::pg_snapshot;
    running constant xid8[] := array(select pg_snapshot_xip(seen));
    needed boolean;
    emptied int := 0;
begin
    for number in 0..3 loop
        -- Whoever looked at the clock a moment ago still writes to a neighbour.
        continue when number in (now_written, (now_written + 1) % 4, (now_written + 3) % 4);
        continue when pg_relation_size(format('rowcast.changes_%s', number)::regclass) = 0;
        begin
            execute format('lock table rowcast.changes_%s in access exclusive mode nowait', number);
        exception when lock_not_available then
            continue;
        end;
        execute format('select exists (select from rowcast.changes_%1$s as c where c.xid >= $1)'
                       ' or exists (select from rowcast.changes_%1$s as c where c.xid = any ($2))', number)
            into needed using pg_snapshot_xmax(seen), running;
        continue when needed;
        update rowcast.state as s set truncated_snapshot = $1, truncated_epoch = $2, truncated_at = clock_timestamp();
        execute format('truncate rowcast.changes_%s', number);
        emptied := emptied + 1;
    end loop;
    return emptied;
end
$$;
comment on function rowcast.empty_slices(text, text) is
    'Empties the slices in which this snapshot of this epoch sees everything, and notes that it was relied on. Waits for
nobody. The caller knows that the store holds what the snapshot sees.';
