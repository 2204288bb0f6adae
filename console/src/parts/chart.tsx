/** A plot, and the same numbers as a table for who does not see it. */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { useEffect, useRef } from "preact/hooks";
import { theme } from "../lib/theme";

export interface Series {
  name: string;
  values: (number | null)[];
}

interface Given {
  title: string;
  /** Of times in seconds, steps, or names. */
  x: number[] | string[];
  kind?: "time" | "number";
  bars?: boolean;
  /** Each series stands on the ones before it. */
  stacked?: boolean;
  series: Series[];
  unit?: string;
  height?: number;
}

const COLOURS = ["--chart-1", "--chart-2", "--chart-3", "--chart-4"];

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

export function Chart({ title, x, kind = "number", bars, stacked, series, unit = "", height = 190 }: Given) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const named = typeof x[0] === "string";
  // uPlot draws the first series first, so that the tallest sum must be the first.
  const drawn = stacked ? series.toReversed() : series;
  const data = [named ? x.map((_, index) => index) : x, ...drawn.map((one) => (stacked ? sums(series, series.indexOf(one)) : one.values))] as uPlot.AlignedData;
  const shape = [theme.value, series.map((one) => one.name).join("|"), named ? x.join("|") : kind, bars].join("§");
  useEffect(() => {
    const place = box.current!;
    const style = getComputedStyle(place);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis: uPlot.Axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "11px system-ui" };
    const names = x as string[];
    plot.current = new uPlot(
      {
        width: place.clientWidth || 320,
        height,
        scales: {
          x: { time: kind === "time" && !named, range: named ? () => [-0.6, names.length - 0.4] : undefined },
          y: { range: (_plot, low, high) => [Math.min(0, low ?? 0), (high ?? 0) > 0 ? high * 1.1 : 1] },
        },
        axes: [
          named
            ? { ...axis, grid: { show: false }, splits: () => names.map((_, index) => index), values: (self) => labels(names, self.width) }
            : kind === "time"
              ? { ...axis, incrs: SECONDS, values: (_plot, times) => times.map((time) => new Date(time * 1000).toTimeString().slice(0, 8)), space: 70 }
              : axis,
          { ...axis, size: 58, values: (_plot, values) => values.map((value) => short(value) + unit) },
        ],
        legend: { show: series.length > 1, live: false },
        cursor: { show: false },
        series: [
          {},
          ...drawn.map((one) => {
            const stroke = colour(COLOURS[series.indexOf(one) % COLOURS.length]!);
            return {
              label: one.name,
              stroke,
              width: 2,
              fill: bars ? stroke : undefined,
              points: { show: !bars && x.length < 40 },
              paths: bars ? uPlot.paths.bars!({ size: [0.7, 42] }) : undefined,
            };
          }),
        ],
      },
      data,
      place,
    );
    const watch = new ResizeObserver(() => plot.current?.setSize({ width: place.clientWidth, height }));
    watch.observe(place);
    return () => {
      watch.disconnect();
      plot.current?.destroy();
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data), [data]);
  return (
    <figure class="chart-box">
      <figcaption>{title}</figcaption>
      <div class="chart" ref={box} aria-hidden="true" />
      <details>
        <summary>As a table</summary>
        <div class="table" role="region" aria-label={title} tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">{kind === "time" ? "Time" : named ? "Name" : "Step"}</th>
                {series.map((one) => (
                  <th key={one.name} scope="col" class="number">
                    {one.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {x.slice(-60).map((value, row) => {
                const at = Math.max(0, x.length - 60) + row;
                return (
                  <tr key={at}>
                    <th scope="row">{kind === "time" && typeof value === "number" ? new Date(value * 1000).toISOString().slice(11, 19) : value}</th>
                    {series.map((one) => (
                      <td key={one.name} class="number">
                        {one.values[at] == null ? "–" : short(one.values[at]!) + unit}
                      </td>
                    ))}
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}

function sums(series: Series[], last: number): number[] {
  return series[last]!.values.map((_, at) => series.slice(0, last + 1).reduce((all, one) => all + (one.values[at] ?? 0), 0));
}

/** As many names as there is room for. */
function labels(names: string[], width: number): string[] {
  const every = Math.ceil((names.length * 70) / Math.max(70, width));
  // Of a day the month and the day say enough.
  const brief = (name: string) => (/^\d{4}-\d\d-\d\d$/.test(name) ? name.slice(5) : name.length > 12 ? `${name.slice(0, 11)}…` : name);
  return names.map((name, index) => (index % every ? "" : brief(name)));
}

export function short(value: number): string {
  const most = Math.abs(value);
  if (most >= 1e9) return `${+(value / 1e9).toFixed(1)}G`;
  if (most >= 1e6) return `${+(value / 1e6).toFixed(1)}M`;
  if (most >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
  return String(+value.toPrecision(4));
}
