import {
  authorized,
  ConnectionError,
  credentialsOf,
  type Failure,
  failureOf,
  fetchOf,
  refusal,
  unreachable,
} from "./credentials.js";
import { FrameParser, type Frame } from "./frames.js";
import type { Connection } from "./types.js";

/** The types of events that a stream has. */
export const EVENTS = [
  "insert", "update", "delete", "truncate", "snapshot", "snapshot-end", "heartbeat", "reset", "bye",
];

const STREAM = "text/event-stream";
const LOST = "the connection was lost";

/** One connection. */
export interface Source {
  close(): void;
}

/** What a connection reports. */
export interface SourceHandlers {
  opened(): void;
  /** Something has arrived, if only a part of an event. */
  alive(): void;
  frame(frame: Frame): void;
  failed(failure: Failure): void;
}

/** Connect by `fetch`, which may send headers and sees the answer's status. */
export function openFetch(address: string, connection: Connection, handlers: SourceHandlers): Source {
  const ending = new AbortController();
  const failed = (error: unknown) => void (ending.signal.aborted || handlers.failed(failureOf(error)));
  follow(address, connection, ending.signal, handlers).catch(failed);
  return { close: () => ending.abort() };
}

async function follow(
  address: string,
  connection: Connection,
  signal: AbortSignal,
  handlers: SourceHandlers,
): Promise<void> {
  const answer = await answerOf(address, connection, signal);
  if (!answer.ok) throw new ConnectionError(await refusal(answer));
  const type = answer.headers.get("content-type") ?? "nothing that is named";
  if (!answer.body || !type.startsWith(STREAM)) {
    void answer.body?.cancel();
    throw new ConnectionError({ reason: `${new URL(address).pathname} answers ${type}, which is no stream: is url right?` });
  }
  handlers.opened();
  await read(answer.body.getReader(), signal, handlers);
}

async function answerOf(address: string, connection: Connection, signal: AbortSignal): Promise<Response> {
  const request = fetchOf(connection);
  const settings = { signal, cache: "no-store", credentials: credentialsOf(connection) } as const;
  return authorized(connection, async (headers) => {
    try {
      return await request(address, { ...settings, headers: { Accept: STREAM, ...headers } });
    } catch {
      throw new ConnectionError({ reason: unreachable(address) });
    }
  });
}

async function read(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  signal: AbortSignal,
  handlers: SourceHandlers,
): Promise<void> {
  const decoder = new TextDecoder();
  const parser = new FrameParser();
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
    if (signal.aborted) return;
    if (done) throw new ConnectionError({ reason: LOST });
    handlers.alive();
    parser.feed(decoder.decode(value, { stream: true })).forEach(handlers.frame);
  }
}

/** Connect by the browser's `EventSource`; `address` gives another one to ask why it failed. */
export function openEventSource(
  url: string,
  connection: Connection,
  handlers: SourceHandlers,
  why: () => Promise<Failure>,
): Source {
  if (typeof EventSource !== "function") {
    throw new TypeError('there is no EventSource here: leave out transport: "eventsource"');
  }
  const source = new EventSource(url, { withCredentials: Boolean(connection.withCredentials) });
  let isOpen = false;
  source.onopen = () => {
    isOpen = true;
    handlers.opened();
  };
  // Reconnecting is ours in every case: the browser gives up for good after any answer but 200,
  // and would else repeat a used ticket, or a position that a reset has just taken away.
  source.onerror = () => {
    source.close();
    if (isOpen) handlers.failed({ reason: LOST });
    else void why().then(handlers.failed);
  };
  for (const type of EVENTS) {
    source.addEventListener(type, ({ data, lastEventId }) => {
      handlers.alive();
      handlers.frame({ type, data, id: lastEventId });
    });
  }
  return source;
}

/** Find out by a plain request why an `EventSource` failed: it has no status itself. */
export async function reasonOf(address: () => Promise<string>, connection: Connection): Promise<Failure> {
  const ending = new AbortController();
  const { signal } = ending;
  let target = "";
  try {
    target = await address();
    const answer = await fetchOf(connection)(target, { signal, credentials: credentialsOf(connection) });
    return answer.ok ? { reason: LOST } : await refusal(answer);
  } catch (error) {
    return error instanceof ConnectionError || !target ? failureOf(error) : { reason: unreachable(target) };
  } finally {
    ending.abort();
  }
}
