-- Who was shown what, if the server is told to write it down (ROWCAST_AUDIT=table).
create table rowcast.audit (
    id bigint primary key generated always as identity,
    at timestamptz not null,
    event text not null check (event in ('subscribed', 'refused', 'ended', 'read')),
    node text not null,
    session text,
    peer inet,
    subject text,
    token text,
    publication text not null,
    channel text,
    served text check (served in ('memory', 'store', 'postgres')),
    rows bigint,
    why text,
    duration_ms bigint
);
create index audit_at on rowcast.audit using brin (at);

comment on table rowcast.audit is
    'Who was shown what. Written in batches by every node; nothing here removes rows: delete those older than you need.';
comment on column rowcast.audit.id is 'In the order of writing.';
comment on column rowcast.audit.at is 'When it happened, by the node''s clock.';
comment on column rowcast.audit.event is
    'subscribed: rows began to flow. refused: none did. ended: no more do. read: once, over HTTP.';
comment on column rowcast.audit.node is 'The node that served it.';
comment on column rowcast.audit.session is 'The connection, as hello named it; null for a read over HTTP.';
comment on column rowcast.audit.peer is 'The client''s address.';
comment on column rowcast.audit.subject is 'The token''s sub; null: anonymous.';
comment on column rowcast.audit.token is 'The first 128 bits of the SHA-256 of the token''s jti, as hexadecimal digits.';
comment on column rowcast.audit.publication is 'What was asked for, by name.';
comment on column rowcast.audit.channel is 'The resolved channel: generation, policy with its claims filled in, query. Null: it did not resolve.';
comment on column rowcast.audit.served is 'Where its rows came from: this node''s memory, the store, or a query in Postgres.';
comment on column rowcast.audit.rows is 'How many rows the channel had at that moment.';
comment on column rowcast.audit.why is 'Why it ended or was refused.';
comment on column rowcast.audit.duration_ms is 'How long it lasted.';
comment on index rowcast.audit_at is 'Finds a span of time.';

do $$
begin
    if exists (select from pg_roles as r where r.rolname = 'rowcast_server') then
        grant insert on rowcast.audit to rowcast_server;
    end if;
    if exists (select from pg_roles as r where r.rolname = 'rowcast_auditor') then
        grant select on rowcast.audit to rowcast_auditor;
    end if;
end
$$;
