/** A row of the table `orders`, as the service shows it. */
export interface Order {
  id: number;
  status: "new" | "paid" | "shipped";
  /** A numeric: text, so that no digit is lost. */
  total: string;
}

/** Pay an order; returns the id of the transaction that has written it. */
export async function pay(id: number): Promise<string> {
  const answer = await fetch(`/orders/${id}/pay`, { method: "POST" });
  if (!answer.ok) throw new Error(`order ${id} was not paid: the server answered ${answer.status}`);
  const { transaction } = (await answer.json()) as { transaction: string };
  return transaction;
}
