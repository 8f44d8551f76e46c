import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import { vi } from "vitest";

/** Wait until a condition holds, however busy the machine is. */
export function until(condition: () => unknown): Promise<unknown> {
  return vi.waitUntil(condition, { timeout: 20_000, interval: 5 });
}

/** One request for a stream, as the service saw it. */
export interface Asked {
  path: string;
  query: URLSearchParams;
  headers: IncomingMessage["headers"];
}

/** A service over real HTTP whose every move is the test's. */
export class ScriptedService {
  readonly asked: Asked[] = [];
  /** What answers a request before a stream does: a status and a body. */
  refuse: (asked: Asked) => [number, object, Record<string, string>?] | null = () => null;
  /** The first events of a stream. */
  opening: (asked: Asked) => string = () => frame("heartbeat", { interval: 15 }) + end([]);
  readonly #server: Server;
  readonly #streams = new Set<ServerResponse>();
  #arrivals: (() => void)[] = [];

  constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return this;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/v1`;
  }

  get open(): number {
    return this.#streams.size;
  }

  /** Send text to every open stream. */
  send(...texts: string[]): void {
    for (const stream of this.#streams) stream.write(texts.join(""));
  }

  /** End every open stream. */
  cut(): void {
    for (const stream of this.#streams) stream.end();
  }

  /** Wait until so many streams have been asked for. */
  async requested(number: number): Promise<void> {
    while (this.asked.length < number) await new Promise<void>((resolve) => this.#arrivals.push(resolve));
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url!, this.url);
    const asked = { path: url.pathname, query: url.searchParams, headers: request.headers };
    this.asked.push(asked);
    const refusal = this.refuse(asked);
    if (refusal) {
      response.writeHead(refusal[0], { "content-type": "application/json", ...refusal[2] });
      response.end(JSON.stringify(refusal[1]));
    } else {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(`retry: 1000\n\n${this.opening(asked)}`);
      this.#streams.add(response);
      response.on("close", () => this.#streams.delete(response));
    }
    for (const arrived of this.#arrivals.splice(0)) arrived();
  }
}

export function frame(event: string, data: object, id?: string): string {
  return `${id === undefined ? "" : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}

const ORDERS = { schema: "public", table: "orders" };

/** One row of a snapshot. */
export function row(id: number, status: string): string {
  return frame("snapshot", { ...ORDERS, key: { id }, row: { id, status } });
}

/** The end of a snapshot. */
export function end(rows: string[], position?: string): string {
  return rows.join("") + frame("snapshot-end", { tables: ["public.orders"], rows: rows.length }, position);
}

/** One change; `transaction` wrote it. */
export function change(
  operation: string,
  id: number,
  status: string | null,
  position?: string,
  transaction?: number,
): string {
  const written = transaction === undefined ? {} : { transaction_id: String(transaction) };
  const data = { operation, ...ORDERS, key: { id }, changed: null, ...written };
  return frame(operation, status === null ? data : { ...data, row: { id, status } }, position);
}

/** A position that sees all transactions below `xmax` but the running ones. */
export function position(xmax: number, ...running: number[]): string {
  return encoded(1, whole(xmax, running));
}

/** A position between two snapshots, after the change `last`. */
export function between(seen: number, upto: number, last: number): string {
  return `${encoded(2, [...whole(seen, []), ...varint(upto - seen), 0])}.${last}`;
}

function encoded(kind: number, body: number[]): string {
  return Buffer.from([kind, ...new Array(16).fill(7), ...body]).toString("base64url");
}

function whole(xmax: number, running: number[]): number[] {
  const falling = [...running].sort((one, other) => other - one);
  const distances = falling.map((xid, index) => (index ? falling[index - 1]! : xmax) - xid);
  return [xmax, running.length, ...distances].flatMap(varint);
}

function varint(number: number): number[] {
  return number < 128 ? [number] : [(number & 127) | 128, ...varint(Math.floor(number / 128))];
}
