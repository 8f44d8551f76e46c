-- All that makes up schema rowsignal, and the triggers that call its functions.
    select 'function', p.oid::regprocedure::text,
        concat(md5(p.prosrc), ' ', p.prosecdef, ' ', p.provolatile, p.proparallel, ' ',
            p.proconfig, ' ', (select array_agg(a::text order by a::text) from unnest(coalesce(p.proacl, acldefault('f', p.proowner))) as a))
    from pg_proc as p where p.pronamespace = 'rowsignal'::regnamespace
    union all
    select 'column', concat(c.relname, '.', a.attname), concat(format_type(a.atttypid, a.atttypmod),
        ' ', a.attnotnull, ' ', a.attidentity, ' ', pg_get_expr(d.adbin, d.adrelid))
    from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'S')
    union all
    select 'table', c.relname, concat(c.relkind, c.relpersistence, ' ',
        (select array_agg(x order by x) from unnest(c.reloptions) as x), ' ',
        (select array_agg(a::text order by a::text) from unnest(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) as a))
    from pg_class as c where c.relnamespace = 'rowsignal'::regnamespace
    union all
    select 'constraint', conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace = 'rowsignal'::regnamespace
    union all
    select 'index', indexname, indexdef from pg_indexes where schemaname = 'rowsignal'
    union all
    select 'type', typname, (select array_agg(a::text order by a::text) from unnest(coalesce(typacl, acldefault('T', typowner))) as a)::text
    from pg_type where typnamespace = 'rowsignal'::regnamespace and typtype = 'c'
    union all
    select 'trigger', concat(t.tgrelid::regclass, ' ', t.tgname),
        concat(t.tgfoid::regproc, ' ', t.tgtype, t.tgenabled, ' ', encode(t.tgargs, 'escape'))
    from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = 'rowsignal'::regnamespace
    union all
    select 'schema', nspname, (select array_agg(a::text order by a::text) from unnest(nspacl) as a)::text
    from pg_namespace where nspname = 'rowsignal'
    union all
    select 'comment', description, '' from pg_description
    where objoid = 'rowsignal'::regnamespace and classoid = 'pg_namespace'::regclass
    order by 1, 2, 3
