-- What a worker asks and tells about its consumers. $1 is the consumer, $2 the partition and $3 the
-- generation of its lease wherever a statement moves something: no row is changed without the lease.

-- :: consumer_schema
select to_regclass('rowsignal.consumer_partition') is not null as has_consumers

-- :: consumer_create
select rowsignal.create_consumer_v1($1, $2, $3, $4::text::pg_snapshot)

-- :: consumer_lease
select rowsignal.lease_consumers_v1($1, $2, $3, $4)::text

-- :: consumer_release
update rowsignal.consumer_partition
set holder = null, backend = null, backend_start = null
where consumer = $1 and number = $2 and generation = $3

-- :: consumer_leave
delete from rowsignal.worker where id = $1

-- :: consumer_load
select p.seen::text, p.upto::text, p.last_id, rowsignal.position_problem_v1(p.origin, p.seen) as problem
from rowsignal.consumer_partition as p
where p.consumer = $1 and p.number = $2 and p.generation = $3

-- :: consumer_connect
-- The connection is direct: where the worker stops without a word, its successor ends it.
update rowsignal.consumer_partition
set backend = pg_backend_pid(),
    backend_start = (select a.backend_start from pg_stat_activity as a where a.pid = pg_backend_pid())
where consumer = $1 and number = $2 and generation = $3
returning true

-- :: consumer_move
update rowsignal.consumer_partition
set seen = $4::text::pg_snapshot, upto = $5::text::pg_snapshot, last_id = $6, handled = handled + $7,
    attempts = 0, error = null, failing = null, moved_at = clock_timestamp()
where consumer = $1 and number = $2 and generation = $3
returning true

-- :: consumer_fail
update rowsignal.consumer_partition
set attempts = attempts + 1, error = $4, failing = $5::text::jsonb
where consumer = $1 and number = $2 and generation = $3
returning attempts

-- :: consumer_bury
-- The change becomes a dead letter in the transaction that moves the position past it.
insert into rowsignal.dead_letter (consumer, partition, change, error, attempts)
values ($1, $2, $3::text::jsonb, $4, $5)

-- :: consumer_reset
update rowsignal.consumer_partition
set seen = $4::text::pg_snapshot, upto = null, last_id = 0, origin = rowsignal.log_origin_v1(),
    attempts = 0, error = null, failing = null, overtaken_at = null, moved_at = clock_timestamp(),
    resets = resets + 1, reset_at = clock_timestamp(), reset_reason = $5
where consumer = $1 and number = $2 and generation = $3
returning true

-- :: letters_due
select id, change::text from rowsignal.dead_letter
where consumer = $1 and partition = $2 and is_due order by id limit 100

-- :: letter_done
-- Locks the partition against a worker that takes it over, which would handle the letter as well.
with held as materialized (
    select from rowsignal.consumer_partition
    where consumer = $1 and number = $2 and generation = $3 for no key update
)
delete from rowsignal.dead_letter where id = $4 and is_due and exists (select from held)
returning true

-- :: letter_failed
update rowsignal.dead_letter
set is_due = false, attempts = attempts + 1, error = $2, failed_at = clock_timestamp()
where id = $1

-- :: consumer_lag
select * from rowsignal.consumer_lag_v1()

-- :: consumer_set
select rowsignal.reset_consumer_v1($1, $2::text::pg_snapshot, $3::text::pg_snapshot, $4, $5)

-- :: consumer_skip
select rowsignal.skip_failing_v1($1, $2)

-- :: consumer_drop
delete from rowsignal.consumer where name = $1 returning true

-- :: letters
select id, consumer, partition, change::text, error, attempts, failed_at, is_due
from rowsignal.dead_letter where $1::text is null or consumer = $1 order by id limit $2

-- :: letters_retry
update rowsignal.dead_letter set is_due = true
where consumer = $1 and ($2::bigint[] is null or id = any ($2)) returning id

-- :: letters_drop
delete from rowsignal.dead_letter
where consumer = $1 and ($2::bigint[] is null or id = any ($2)) returning id
