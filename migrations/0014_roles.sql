-- Group roles, so that nothing of ours needs a superuser: who installs and publishes, what serves, and who looks on. They
-- belong to the cluster and may be there already. Where the migrating role may not create roles everything works all the
-- same, as the role that owns the schema.

do $$
declare
    name text;
begin
    foreach name in array array['rowcast_installer', 'rowcast_server', 'rowcast_auditor'] loop
        if not exists (select from pg_roles as r where r.rolname = name) then
            begin
                execute format('create role %I nologin', name);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'the role % cannot be created: the owner of the schema rowcast has to serve', name;
                    continue;
            end;
        end if;
        execute format('grant usage on schema rowcast to %I', name);
    end loop;

    if exists (select from pg_roles as r where r.rolname = 'rowcast_installer') then
        grant select, insert, update, delete, truncate, references, trigger on all tables in schema rowcast to rowcast_installer;
        grant usage, select, update on all sequences in schema rowcast to rowcast_installer;
    end if;

    if exists (select from pg_roles as r where r.rolname = 'rowcast_server') then
        grant select on all tables in schema rowcast to rowcast_server;
        grant usage, select, update on sequence rowcast.version to rowcast_server;
        grant insert, update on rowcast.epoch to rowcast_server;
        grant update on rowcast.state, rowcast.pulse to rowcast_server;
    end if;

    if exists (select from pg_roles as r where r.rolname = 'rowcast_auditor') then
        grant select on rowcast.publications, rowcast.state, rowcast.pulse, rowcast.migrations to rowcast_auditor;
    end if;
end
$$;

create function rowcast.renew_watches_as_owner() returns int[]
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return rowcast.renew_watches();
end
$$;
comment on function rowcast.renew_watches_as_owner() is
    'rowcast.renew_watches for the leader: with the rights of the schema''s owner, who has to have TRIGGER on what is watched.';

-- These do with the owner's rights what others may not do by themselves.
revoke execute on function rowcast.empty_slices(text, text), rowcast.renew_capture(), rowcast.renew_watches_as_owner(),
    rowcast.write_capture_function(int, boolean), rowcast.forget_dropped_tables() from public;
do $$
begin
    if exists (select from pg_roles as r where r.rolname = 'rowcast_installer') then
        grant execute on function rowcast.write_capture_function(int, boolean), rowcast.forget_dropped_tables() to rowcast_installer;
    end if;
    if exists (select from pg_roles as r where r.rolname = 'rowcast_server') then
        grant execute on function rowcast.empty_slices(text, text), rowcast.renew_capture(), rowcast.renew_watches_as_owner()
            to rowcast_server;
    end if;
end
$$;

create function rowcast.warn_of_privileges(relation regclass) returns void
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Nobody's role is nobody's concern.
    if not exists (select from pg_auth_members as m join pg_roles as r on r.oid = m.roleid where r.rolname = 'rowcast_server') then
        return;
    end if;
    if not has_table_privilege('rowcast_server', $1, 'select')
       or not has_schema_privilege('rowcast_server', (select c.relnamespace from pg_class as c where c.oid = $1), 'usage')
    then
        raise warning 'rowcast_server may not read %', $1
            using hint = format('grant select on %s to rowcast_server, and usage on its schema', $1);
    end if;
    if (select c.relrowsecurity from pg_class as c where c.oid = $1)
       and not exists (
           select from pg_policy as p where p.polrelid = $1 and p.polpermissive and p.polcmd in ('*', 'r')
             and pg_get_expr(p.polqual, $1) = 'true'
             and (select r.oid from pg_roles as r where r.rolname = 'rowcast_server') = any (p.polroles))
    then
        raise warning 'row security may hide rows of % from rowcast_server', $1
            using hint = format('create policy rowcast_server on %s for select to rowcast_server using (true);'
                                ' not needed where the server''s login role has BYPASSRLS', $1);
    end if;
end
$$;
comment on function rowcast.warn_of_privileges(regclass) is
    'Warns whoever publishes if the role that serves, where one is used, cannot read the table.';
