// A position is base64url of a kind, 16 bytes that name the log, and a snapshot as varints: the
// first transaction it does not see, and the distances of those that were still running.
const WHOLE = 1;
const WINDOW = 2;
const HEADER = 17;

/**
 * Whether a reader at this position has received all changes of a transaction; null where the
 * position does not say, as one that the server keeps under a name.
 */
export function hasPassed(position: string, transaction: bigint): boolean | null {
  const bytes = decoded(position.split(".")[0]!);
  const kind = bytes?.[0];
  if (!bytes || (kind !== WHOLE && kind !== WINDOW)) return null;
  // Between two snapshots, all that the older one sees has been received.
  const numbers = varints(bytes.subarray(HEADER));
  const xmax = numbers.next().value;
  if (xmax === undefined) return null;
  return transaction < xmax && !isRunning(numbers, xmax, transaction);
}

function isRunning(numbers: Iterator<bigint, undefined>, xmax: bigint, transaction: bigint): boolean {
  let left = numbers.next().value ?? 0n;
  for (let xid = xmax; left > 0n; left -= 1n) {
    xid -= numbers.next().value ?? 0n;
    if (xid === transaction) return true;
  }
  return false;
}

function decoded(text: string): Uint8Array | null {
  try {
    const raw = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(raw, (character) => character.charCodeAt(0));
  } catch {
    return null; // not a position of this kind of service
  }
}

function* varints(bytes: Uint8Array): Generator<bigint, undefined> {
  let number = 0n;
  let shift = 0n;
  for (const byte of bytes) {
    number |= BigInt(byte & 0x7f) << shift;
    shift += 7n;
    if (byte < 0x80) {
      yield number;
      number = shift = 0n;
    }
  }
}
