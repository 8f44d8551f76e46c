-- Functions and operators that fit calls with a conversion exactly, in schema mallory.
    set search_path = pg_catalog;
    do $$
    declare
        kinds constant text[] := '{name,text,oid,int2,int4,int8,bool,json,jsonb,regclass,
            xid8,varchar,regtype,oidvector,int2vector,"\"char\"",numeric,float8,timestamptz,
            interval,uuid}';
        one text; two text; sign text; trap text;
    begin
        foreach one in array kinds loop
            foreach two in array kinds loop
                foreach sign in array '{=,<>,<,>,<=,>=,||,->,->>,~,&,+,-,*,/,?,@>}'::text[] loop
                    continue when one::regtype = two::regtype and sign in ('=', '<>', '<', '>', '<=', '>=')
                        and one not in ('json', 'varchar', 'int2vector');
                    continue when exists (select from pg_operator as o where o.oprname = sign
                        and o.oprleft = one::regtype and o.oprright = two::regtype);
                    trap := format('%s_%s_%s', md5(sign), one::regtype::oid, two::regtype::oid);
                    execute format('create function mallory.%I(%s, %s) returns %s language plpgsql as %L', trap, one, two,
                        case when sign in ('=', '<>', '<', '>', '<=', '>=', '~', '?', '@>') then 'bool' else 'text' end,
                        'begin begin perform mallory.trap(); exception when read_only_sql_transaction then null; end; raise exception ''trap: ' || sign || ' ' || one || ' ' || two || '''; end');
                    execute format('create operator mallory.%s (leftarg = %s, rightarg = %s, function = mallory.%I)',
                        sign, one, two, trap);
                end loop;
            end loop;
            foreach trap in array '{concat,quote_ident,quote_literal,to_json,to_jsonb,json_build_object,
                json_agg,string_agg,md5,unnest,to_regclass,coalesce_,lower,max,min,sum,count,
                format,json_array_elements,json_typeof,replace,encode,octet_length,pg_typeof,
                has_table_privilege,has_function_privilege,date_part,extract_,pg_partition_root}'::text[] loop
                begin
                    execute format('create function mallory.%I(%s) returns text language plpgsql as %L', trap, one,
                        'begin begin perform mallory.trap(); exception when read_only_sql_transaction then null; end; raise exception ''trap: ' || trap || '''; end');
                    execute format('create function mallory.%I(%s, text) returns text language plpgsql as %L', trap, one,
                        'begin begin perform mallory.trap(); exception when read_only_sql_transaction then null; end; raise exception ''trap: ' || trap || '''; end');
                    execute format('create function mallory.%I(text, %s) returns text language plpgsql as %L', trap, one,
                        'begin begin perform mallory.trap(); exception when read_only_sql_transaction then null; end; raise exception ''trap: ' || trap || '''; end');
                exception when duplicate_function then null;
                end;
            end loop;
        end loop;
    end $$;
    reset search_path
