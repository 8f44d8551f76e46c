import { differing, type RowData } from "./rows.js";
import type { Change, Operation, Row } from "./types.js";

/** The data of a change, as the service sends it. */
export interface ChangeData extends RowData {
  operation: Operation;
  old?: Row | null;
  changed?: string[] | null;
  captured_at?: string;
  transaction_id?: string | null;
}

/** A change as listeners get it; `held` is the row that was held before. */
export function changeFrom(data: ChangeData, held: Row | null, position: string | null): Change {
  const { key, row = null, operation } = data;
  const old = data.old ?? held;
  const isUpdate = operation === "update" && old && row;
  const change: Change = {
    operation,
    table: `${data.schema}.${data.table}`,
    key,
    row,
    old,
    changed: data.changed ?? (isUpdate ? differing(old, row) : null),
    source: "stream",
    position,
  };
  if (data.captured_at) change.capturedAt = data.captured_at;
  if (data.transaction_id) change.transactionId = data.transaction_id;
  return change;
}
