-- What is published. Written by rowcast.publish and rowcast.unpublish only; what is true of it now says rowcast.describe.
create table rowcast.publications (
    name text primary key check (name ~ '^[a-z0-9_.-]{1,63}$'),
    id int not null unique generated always as identity,
    relation regclass not null,
    policy text not null,
    policy_columns text[] not null,
    columns text[],
    key text[] not null,
    bulk_rows int not null check (bulk_rows >= 0),
    refresh_ms int not null check (refresh_ms >= 0),
    depends_on regclass[],
    generation bigint not null unique,
    capture int not null,
    published_at timestamptz not null default now()
);

comment on table rowcast.publications is 'Tables and views made available to clients, with their key, columns and policy.';
comment on column rowcast.publications.name is 'The name clients subscribe to.';
comment on column rowcast.publications.id is 'How the change log calls it: the same over all its generations, never reused.';
comment on column rowcast.publications.relation is 'The table or view. Follows a rename; a dropped one ends the publication.';
comment on column rowcast.publications.policy is 'Who may see which rows.';
comment on column rowcast.publications.policy_columns is 'The columns a filter policy names: read also where they are not shown.';
comment on column rowcast.publications.columns is 'The columns shown, key columns among them; null is {*}: all there are.';
comment on column rowcast.publications.key is 'Columns that are unique together and not null, in key order.';
comment on column rowcast.publications.bulk_rows is 'More changed rows than this at once are not told apart: every channel looks for itself.';
comment on column rowcast.publications.refresh_ms is 'A view is run at most this often, in milliseconds.';
comment on column rowcast.publications.depends_on is 'Relations it depends on besides those that can be found out; null: none are named.';
comment on column rowcast.publications.generation is 'New at every publish, from rowcast.version.';
comment on column rowcast.publications.capture is
    'Number of the trigger function rowcast.capture_<n>, which all publications of a table share.';
comment on column rowcast.publications.published_at is 'When it was published last.';
