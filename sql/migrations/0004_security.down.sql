-- Back to the functions of 0.1.0, which the migrations before this one define again. Hint triggers keep
-- their function under its old name; logged tables lose their triggers: install them anew.

-- :: functions
drop function if exists rowsignal.capture_hint_v1() cascade;
alter function rowsignal.capture_hint_v2() rename to capture_hint_v1;
do $rowsignal$
declare
    name text;
begin
    for name in
        select p.oid::regprocedure::text from pg_proc as p
        where p.pronamespace = 'rowsignal'::regnamespace and p.proname not in ('log_origin_v1', 'capture_hint_v1')
    loop
        execute concat('drop function if exists ', name, ' cascade');
    end loop;
end
$rowsignal$;

drop table rowsignal.dead_letter, rowsignal.worker, rowsignal.consumer_partition, rowsignal.consumer;
alter table rowsignal.horizon drop column origin;
alter table rowsignal.tick drop column changes;
alter table rowsignal.change drop column trace;
create index if not exists change_xid on rowsignal.change (xid);
drop index if exists rowsignal.change_xid_relation;

delete from rowsignal.migration where version = 4;
