import type { Connection } from "./types.js";

/** Why a connection could not be had, or ended. */
export interface Failure {
  reason: string;
  status?: number | undefined;
  /** Milliseconds that the service asked to wait. */
  pause?: number | undefined;
}

/** A failure on its way through promises. */
export class ConnectionError extends Error {
  constructor(readonly failure: Failure) {
    super(failure.reason);
  }
}

const UNAUTHORIZED = 401;

/** Say what to send: the headers that were given, and the token as a bearer's. */
export async function headersOf(connection: Connection, refused: boolean): Promise<Record<string, string>> {
  const { headers, token } = connection;
  const given = typeof headers === "function" ? await headers() : headers;
  const bearer = typeof token === "function" ? await token({ refused }) : token;
  return { ...given, ...(bearer ? { Authorization: `Bearer ${bearer}` } : {}) };
}

/** Send a request; after a 401 once more, when a function can give other credentials. */
export async function authorized(
  connection: Connection,
  send: (headers: Record<string, string>) => Promise<Response>,
): Promise<Response> {
  const answer = await send(await headersOf(connection, false));
  const canRefresh = typeof connection.token === "function" || typeof connection.headers === "function";
  if (answer.status !== UNAUTHORIZED || !canRefresh) return answer;
  void answer.body?.cancel();
  return send(await headersOf(connection, true));
}

/** The ticket for one connection, if it needs one. */
export async function ticketOf(connection: Connection, tickets: () => string): Promise<string | null> {
  const { ticket, token, transport } = connection;
  if (ticket) return typeof ticket === "function" ? ticket() : ticket;
  if (!token || transport !== "eventsource") return null;
  const request = fetchOf(connection);
  const answer = await authorized(connection, (headers) =>
    request(tickets(), { method: "POST", headers, credentials: credentialsOf(connection) }),
  );
  if (!answer.ok) throw new ConnectionError(await refusal(answer));
  return ((await answer.json()) as { ticket: string }).ticket;
}

export function fetchOf(connection: Connection): typeof fetch {
  return connection.fetch ?? globalThis.fetch.bind(globalThis);
}

export function credentialsOf({ withCredentials }: Connection): RequestCredentials {
  return withCredentials ? "include" : "same-origin";
}

/** What an answer that is no stream says about itself. */
export async function refusal(answer: Response): Promise<Failure> {
  const problem = (await answer.json().catch(() => null)) as Record<string, unknown> | null;
  const detail = problem?.["detail"] ?? problem?.["title"];
  const reason = typeof detail === "string" ? detail : `the service answered ${answer.status}`;
  // Readers that were refused together must not come back together.
  const later = Number(answer.headers.get("retry-after")) * (1000 + Math.random() * 200);
  return { reason, status: answer.status, pause: later || undefined };
}

/** A sentence for a service from which no answer came. */
export function unreachable(address: string): string {
  const own = globalThis.location?.origin;
  const isForeign = own && own !== "null" && new URL(address).origin !== own;
  const hint = isForeign ? ` (or does not allow pages of ${own} to read from it: CORS)` : "";
  return `the service cannot be reached${hint}`;
}

/** The failure behind an error of any kind. */
export function failureOf(error: unknown): Failure {
  if (error instanceof ConnectionError) return error.failure;
  return { reason: error instanceof Error ? error.message : String(error) };
}
