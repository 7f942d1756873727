-- Which keys changed, in which transaction; no values. Four slices of five minutes, used in turn, so that old rows go by
-- TRUNCATE, which no long transaction can delay: no DELETE, nothing to vacuum. There is no primary key because nothing
-- looks for one, and each index costs every writer.
--
-- A statement writes one row, with a line for each key: JSON text holds no line feed. Up to 8,160 bytes stay in the row, and
-- nothing is compressed, which would cost the writer more than the bytes do.
create table rowcast.changes_0 (
    xid xid8 not null default pg_current_xact_id(),
    publication int not null,
    keys text
) with (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 100, toast_tuple_target = 8160);
alter table rowcast.changes_0 alter column keys set storage external;
create index changes_0_xid on rowcast.changes_0 using btree (xid);
comment on table rowcast.changes_0 is 'Slice 0 of the change log.';
comment on column rowcast.changes_0.xid is 'The top-level transaction that changed the keys.';
comment on column rowcast.changes_0.publication is 'rowcast.publications.id';
comment on column rowcast.changes_0.keys is 'Keys as JSON text, one a line, some perhaps twice; null: any key may have changed.';
comment on index rowcast.changes_0_xid is 'Finds what one snapshot sees and an earlier one does not.';

create table rowcast.changes_1 (
    xid xid8 not null default pg_current_xact_id(),
    publication int not null,
    keys text
) with (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 100, toast_tuple_target = 8160);
alter table rowcast.changes_1 alter column keys set storage external;
create index changes_1_xid on rowcast.changes_1 using btree (xid);
comment on table rowcast.changes_1 is 'Slice 1 of the change log.';
comment on column rowcast.changes_1.xid is 'The top-level transaction that changed the keys.';
comment on column rowcast.changes_1.publication is 'rowcast.publications.id';
comment on column rowcast.changes_1.keys is 'Keys as JSON text, one a line, some perhaps twice; null: any key may have changed.';
comment on index rowcast.changes_1_xid is 'Finds what one snapshot sees and an earlier one does not.';

create table rowcast.changes_2 (
    xid xid8 not null default pg_current_xact_id(),
    publication int not null,
    keys text
) with (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 100, toast_tuple_target = 8160);
alter table rowcast.changes_2 alter column keys set storage external;
create index changes_2_xid on rowcast.changes_2 using btree (xid);
comment on table rowcast.changes_2 is 'Slice 2 of the change log.';
comment on column rowcast.changes_2.xid is 'The top-level transaction that changed the keys.';
comment on column rowcast.changes_2.publication is 'rowcast.publications.id';
comment on column rowcast.changes_2.keys is 'Keys as JSON text, one a line, some perhaps twice; null: any key may have changed.';
comment on index rowcast.changes_2_xid is 'Finds what one snapshot sees and an earlier one does not.';

create table rowcast.changes_3 (
    xid xid8 not null default pg_current_xact_id(),
    publication int not null,
    keys text
) with (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 100, toast_tuple_target = 8160);
alter table rowcast.changes_3 alter column keys set storage external;
create index changes_3_xid on rowcast.changes_3 using btree (xid);
comment on table rowcast.changes_3 is 'Slice 3 of the change log.';
comment on column rowcast.changes_3.xid is 'The top-level transaction that changed the keys.';
comment on column rowcast.changes_3.publication is 'rowcast.publications.id';
comment on column rowcast.changes_3.keys is 'Keys as JSON text, one a line, some perhaps twice; null: any key may have changed.';
comment on index rowcast.changes_3_xid is 'Finds what one snapshot sees and an earlier one does not.';

create function rowcast.slice() returns int
    language sql volatile parallel safe
    return (date_part('epoch', clock_timestamp()) / 300)::bigint % 4;
comment on function rowcast.slice() is 'The slice of the change log that is written now.';
