-- The schema that holds all objects of rowsignal. Its functions run with the rights of the role that
-- calls them, so its owner must be a role that this one trusts (PostgreSQL manual, 5.10.6).

-- :: owner
-- Refuse a schema when it, or one of its objects, belongs to a role that the current one does not
-- trust, when such a role may create objects in it, or has put a trigger on one of its tables. Trusted are the current role, superusers, and
-- the roles that the current one is a member of. A superuser counts as a member of every role in
-- pg_has_role, and must not trust them for that.
do $rowsignal$
declare
    strange record;
begin
    with me as (
        select r.oid, r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user
    ),
    schema as (
        select n.* from pg_catalog.pg_namespace as n where n.nspname = 'rowsignal'
    ),
    objects (place, object, owner) as (
        select 0, 'the schema', s.nspowner from schema as s
        union all
        select 1, c.oid::pg_catalog.regclass::text, c.relowner
        from pg_catalog.pg_class as c join schema as s on s.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
        union all
        select 2, p.oid::pg_catalog.regprocedure::text, p.proowner
        from pg_catalog.pg_proc as p join schema as s on s.oid = p.pronamespace
        union all
        select 3, pg_catalog.concat('type ', pg_catalog.format_type(t.oid, null)), t.typowner
        from pg_catalog.pg_type as t join schema as s on s.oid = t.typnamespace
        union all
        select 4, 'the right to create objects in it', a.grantee
        from schema as s cross join lateral pg_catalog.aclexplode(s.nspacl) as a
        where a.privilege_type = 'CREATE'
        union all
        select 5, pg_catalog.concat('the function of trigger ', t.tgname, ' on ', c.oid::pg_catalog.regclass),
            p.proowner
        from pg_catalog.pg_trigger as t
        join pg_catalog.pg_class as c on c.oid = t.tgrelid
        join schema as s on s.oid = c.relnamespace
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
    )
    select o.object, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC') as role into strange
    from objects as o cross join me left join pg_catalog.pg_roles as r on r.oid = o.owner
    where not coalesce(
        r.oid = me.oid or r.rolsuper or not me.rolsuper and pg_catalog.pg_has_role(me.oid, r.oid, 'MEMBER'),
        false)
    order by o.place, o.object
    limit 1;
    if found then
        raise exception using errcode = 'RS002', message = pg_catalog.format(
            'Schema rowsignal is not safe to use as %I: %s belongs to %s. Connect as its owner (or SET ROLE to it), '
            'let a superuser hand it over (ALTER ... OWNER TO) or take it away (REVOKE, DROP).',
            current_user, strange.object, strange.role);
    end if;
end
$rowsignal$;

-- :: schema
do $rowsignal$
begin
    if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'rowsignal') then
        create schema rowsignal;
    end if;
end
$rowsignal$;
