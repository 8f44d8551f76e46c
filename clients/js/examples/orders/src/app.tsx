import { useState } from "react";

import { useRow, useRows } from "@rowsignal/react";

import { pay, type Order } from "./orders.js";

/** All orders, and one of them in detail: both stay current by themselves. */
export function App() {
  const [chosen, choose] = useState<number | null>(null);
  const { rows, state, isReady, subscription } = useRows<Order>("public.orders");
  if (!isReady) return <p role="status">{state.reason ?? "Loading orders"}</p>;
  return (
    <>
      <h1>Orders</h1>
      <p role="status">{state.status === "live" ? `${rows.length} orders, live` : state.reason}</p>
      <table className={state.status}>
        <tbody>
          {rows.map((order) => (
            <Line
              key={order.id}
              order={order}
              choose={choose}
              awaitTransaction={(id) => subscription!.awaitTransaction(id)}
            />
          ))}
        </tbody>
      </table>
      <Detail id={chosen} />
    </>
  );
}

interface LineProps {
  order: Order;
  choose: (id: number) => void;
  awaitTransaction: (id: string) => Promise<void>;
}

function Line({ order, choose, awaitTransaction }: LineProps) {
  const [isPaying, setPaying] = useState(false);
  // The button is back when the list shows what the server has written, not just when it answered.
  const payNow = async () => {
    setPaying(true);
    await pay(order.id)
      .then(awaitTransaction)
      .finally(() => setPaying(false));
  };
  return (
    <tr>
      <td>
        <button onClick={() => choose(order.id)}>Order {order.id}</button>
      </td>
      <td>{order.total}</td>
      <td>{isPaying ? "paying" : order.status}</td>
      <td>
        <button onClick={() => void payNow()} disabled={isPaying || order.status !== "new"}>
          Pay
        </button>
      </td>
    </tr>
  );
}

function Detail({ id }: { id: number | null }) {
  const { row, isReady } = useRow<Order>("public.orders", id);
  if (id === null) return <aside>Choose an order</aside>;
  if (!isReady) return <aside>Loading order {id}</aside>;
  return <aside>{row ? `Order ${row.id} of ${row.total} is ${row.status}` : `Order ${id} is gone`}</aside>;
}
