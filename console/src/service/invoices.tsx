import { useState } from "preact/hooks";
import { get, may } from "../lib/api";
import { Card, count, Problem, Select, Table, useLoaded } from "../parts/controls";
import { NeedsScope, Stat } from "./account";

interface Invoice {
  month: string;
  status: string;
  currency: string;
  lines: { model: string; requests: number; amount: string; charges: { kind: string; tokens: number; price_per_million: string; amount: string }[] }[];
  free_tokens: number;
  total: string;
  payable: string;
}

export function Invoices() {
  const months = useLoaded(() => get<{ data: string[] }>("/v1/invoices"), []);
  const [chosen, setChosen] = useState("");
  const month = chosen || (months.data?.data.at(-1) ?? "");
  const invoice = useLoaded(async () => (month ? get<Invoice>(`/v1/invoices/${month}`) : undefined), [month]);
  if (!may("manage")) return <NeedsScope scope="manage" what="Invoices" />;
  const found = invoice.data;
  return (
    <div class="view">
      <h1>Invoices</h1>
      <p class="lead">An invoice adds up the ledger to the last digit. The ledger has one entry a request and is never changed.</p>
      <Problem error={months.error ?? invoice.error} />
      {months.data && !month && <p class="empty">Nothing was asked yet, so there is no invoice.</p>}
      {month && <Select label="Month" value={month} set={setChosen} options={months.data?.data ?? []} />}
      {found && (
        <>
          <dl class="numbers">
            <Stat name="Payable" value={`$${found.payable}`} />
            <Stat name="Ledger total" value={`$${found.total}`} />
            <Stat name="Free tokens used" value={count(found.free_tokens)} />
            <Stat name="Status" value={found.status} />
          </dl>
          <Card title={`Lines of ${found.month}`}>
            <Table
              caption={`Invoice of ${found.month}`}
              empty="No lines."
              rows={found.lines.flatMap((line) => line.charges.map((charge) => ({ line, charge })))}
              columns={[
                { name: "Model", cell: ({ line }) => line.model },
                { name: "Kind", cell: ({ charge }) => charge.kind.replace("_", " ") },
                { name: "Tokens charged", number: true, cell: ({ charge }) => count(charge.tokens) },
                { name: "Dollars per million", number: true, cell: ({ charge }) => charge.price_per_million },
                { name: "Dollars", number: true, cell: ({ charge }) => charge.amount },
              ]}
            />
          </Card>
        </>
      )}
    </div>
  );
}
