-- How far changes were delivered, for the leader; and the sign of life that writers look at. They are two tables because
-- the first is updated every second, and a row that is updated often becomes slow to read while an old snapshot is held.
create table rowcast.state (
    only_row boolean primary key default true check (only_row),
    acknowledged_snapshot text,
    acknowledged_version bigint,
    acknowledged_epoch text,
    acknowledged_at timestamptz,
    truncated_snapshot text,
    truncated_epoch text,
    truncated_at timestamptz,
    defined jsonb,
    defined_snapshot text,
    defined_epoch text
) with (fillfactor = 50);
insert into rowcast.state default values;

comment on table rowcast.state is 'One row: how far the change log was delivered and thrown away.';
comment on column rowcast.state.only_row is 'Keeps it at one row.';
comment on column rowcast.state.acknowledged_snapshot is 'Everything this snapshot sees is in the store. Written lazily.';
comment on column rowcast.state.acknowledged_version is 'The version of that cut.';
comment on column rowcast.state.acknowledged_epoch is 'The epoch of that cut.';
comment on column rowcast.state.acknowledged_at is 'now() of that cut.';
comment on column rowcast.state.truncated_snapshot is 'The log holds everything this snapshot does not see; what it sees may be gone.';
comment on column rowcast.state.truncated_epoch is 'The epoch of that snapshot.';
comment on column rowcast.state.truncated_at is 'When a slice was emptied last.';
comment on column rowcast.state.defined is 'Fingerprints of the feeds, by name.generation, as delivered.';
comment on column rowcast.state.defined_snapshot is 'The cut with which they were delivered.';
comment on column rowcast.state.defined_epoch is 'The epoch of that cut.';

create table rowcast.pulse (
    only_row boolean primary key default true check (only_row),
    at timestamptz not null default '-infinity',
    log_keep interval not null default '24 hours' check (log_keep >= interval '1 second')
) with (fillfactor = 50);
insert into rowcast.pulse default values;

comment on table rowcast.pulse is 'One row: when a leader was last known to deliver. Older than log_keep, triggers log nothing.';
comment on column rowcast.pulse.only_row is 'Keeps it at one row.';
comment on column rowcast.pulse.at is 'Written by the leader about once a minute while it delivers.';
comment on column rowcast.pulse.log_keep is 'How long changes are kept for a leader that does not come: a forgotten installation fills no disk.';

create function rowcast.is_followed() returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    return exists (select from rowcast.pulse as p where p.at > now() - p.log_keep);
comment on function rowcast.is_followed() is
    'Whether changes are logged. By the transaction''s own time: an old snapshot must not see an old pulse by a new clock.';
