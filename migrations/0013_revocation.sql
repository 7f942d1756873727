-- Tokens that are good no more, though their time is not over. Every node reads this table itself, a few times a second:
-- what is taken back must not depend on the store that carries changes.
create table rowcast.revocations (
    claim text not null check (claim in ('sub', 'jti')),
    value text not null check (value <> ''),
    revoked_at timestamptz not null default clock_timestamp(),
    xid xid8 not null default pg_current_xact_id(),
    primary key (claim, value)
);
create index revocations_xid on rowcast.revocations (xid);

comment on table rowcast.revocations is
    'Tokens taken back, by rowcast.revoke and rowcast.revoke_session. A row may be deleted when every token that it meant has
expired; nodes forget it when they connect to Postgres again.';
comment on column rowcast.revocations.claim is 'sub: all tokens of somebody that were issued up to revoked_at. jti: one token.';
comment on column rowcast.revocations.value is 'The claim''s value.';
comment on column rowcast.revocations.revoked_at is 'When it was said; not when that was committed.';
comment on column rowcast.revocations.xid is
    'Who wrote the row last. Nodes look for what their snapshot sees and the one before did not: a number that is drawn at
the insert would hide a transaction that commits late.';

create function rowcast.revoke(sub text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(sub, '') = '' or octet_length(sub) > 1000 then
        raise exception 'a sub has from 1 to 1000 bytes' using errcode = 'invalid_parameter_value';
    end if;
    insert into rowcast.revocations as r (claim, value) values ('sub', $1)
    on conflict (claim, value) do update
        set revoked_at = greatest(r.revoked_at, excluded.revoked_at), xid = excluded.xid;
end
$$;
comment on function rowcast.revoke(text) is
    'Takes back every token of this subject that was issued until now: its connections are closed within a second of the
commit. Tokens issued in a later second are good; those that do not say when they were issued (iat) never again.';

create function rowcast.revoke_session(jti text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(jti, '') = '' or octet_length(jti) > 1000 then
        raise exception 'a jti has from 1 to 1000 bytes' using errcode = 'invalid_parameter_value';
    end if;
    insert into rowcast.revocations as r (claim, value) values ('jti', $1)
    on conflict (claim, value) do nothing;
end
$$;
comment on function rowcast.revoke_session(text) is
    'Takes back the one token of this id: its connections are closed within a second of the commit.';
