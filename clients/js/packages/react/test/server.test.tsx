import { renderToString } from "react-dom/server";
import { expect, test } from "vitest";

import { RowsignalProvider, useRow, useRows } from "@rowsignal/react";

interface Order {
  id: number;
  status: string;
}

function Orders({ initialRows }: { initialRows?: Order[] }) {
  const { rows, isReady, state } = useRows<Order>("public.orders", initialRows ? { initialRows } : {});
  return (
    <p>
      {state.status} {String(isReady)} {rows.map(({ id }) => id).join()}
    </p>
  );
}

function OneOrder() {
  const { row, isReady } = useRow<Order>("public.orders", [7, "b"], { initialRow: { id: 7, status: "new" } });
  return (
    <p>
      {row?.status} {String(isReady)}
    </p>
  );
}

/** Never rendered: what the types take, and what they do not. */
export function Typed() {
  const { rows } = useRows<Order>("public.orders", { where: { status: { eq: "new" } }, pk: [1, 2] });
  // @ts-expect-error -- no such column
  useRows<Order>("public.orders", { where: { statsu: { eq: "new" } } });
  // @ts-expect-error -- rows are not for writing
  rows.push({ id: 1, status: "new" });
  return useRow<Order>("public.orders", undefined).row?.status;
}

const text = (html: string) => html.replaceAll("<!-- -->", "");

test("on a server the hooks show what they are given, and connect to nothing", () => {
  expect(typeof document).toBe("undefined");
  const page = (
    <RowsignalProvider url="/v1" token={() => "never asked for"}>
      <Orders />
      <Orders initialRows={[{ id: 1, status: "new" }, { id: 2, status: "new" }]} />
      <OneOrder />
    </RowsignalProvider>
  );
  expect(text(renderToString(page))).toBe("<p>connecting false </p><p>connecting false 1,2</p><p>new false</p>");
});

test("no provider is needed", () => {
  expect(text(renderToString(<Orders />))).toBe("<p>connecting false </p>");
});
