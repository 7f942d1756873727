-- Transaction ids are used again after a crash or a promotion, and an old position then skips new changes in silence.
-- What a crash or a promotion empties tells of it: one row of an unlogged table.
create unlogged table rowcast.epoch (
    only_row boolean primary key default true check (only_row),
    token uuid not null default gen_random_uuid()
);
comment on table rowcast.epoch is 'One row, planted by a leader; gone after a crash or a promotion.';
comment on column rowcast.epoch.only_row is 'Keeps it at one row.';
comment on column rowcast.epoch.token is 'A random name for the time in which positions in the change log hold.';

create function rowcast.identity() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select concat_ws(' ', (select c.system_identifier from pg_control_system() as c),
                         substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
                         extract(epoch from pg_postmaster_start_time()), e.token)
        from rowcast.epoch as e
    );
end
$$;
comment on function rowcast.identity() is
    'Server, timeline, start and token; any difference is another epoch. Null: no token is planted. Fails on a standby,
where snapshots leave out running transactions.';
