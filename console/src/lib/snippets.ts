/** A request as the code that makes it elsewhere. */

const OURS = new Set(["preset", "decoding", "diffusing", "min_p", "top_k", "repetition_penalty"]);

export type Language = "curl" | "Python" | "Node";

export function snippet(language: Language, path: string, body: Record<string, unknown>, keyed: boolean): string {
  if (language === "curl") return curl(path, body, keyed);
  const method = { "/v1/chat/completions": "chat.completions", "/v1/completions": "completions" }[path];
  if (language === "Python") return method ? python(method, body, keyed) : pythonPlain(path, body, keyed);
  return method ? node(method, body, keyed) : nodePlain(path, body, keyed);
}

function curl(path: string, body: object, keyed: boolean): string {
  const header = keyed ? ` \\\n  -H "Authorization: Bearer $VERMILION_API_KEY"` : "";
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${location.origin}${path}${header} \\\n  --json '${json}'`;
}

function python(method: string, body: Record<string, unknown>, keyed: boolean): string {
  const plain = Object.entries(body).filter(([name]) => !OURS.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => OURS.has(name)));
  const lines = plain.map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${literal(extra, 4)},`);
  const key = keyed ? `os.environ["VERMILION_API_KEY"]` : `"unused"`;
  const shown = method === "completions" ? "choices[0].text" : "choices[0].message.content";
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key=${key})`,
    `answer = client.${method}.create(`,
    ...lines,
    ")",
    `print(answer.${shown})`,
  ].join("\n");
}

function pythonPlain(path: string, body: object, keyed: boolean): string {
  const headers = keyed ? `\n    headers={"Authorization": f"Bearer {os.environ['VERMILION_API_KEY']}"},` : "";
  return `${keyed ? "import os\n\n" : ""}import httpx

reply = httpx.post(
    "${location.origin}${path}",${headers}
    json=${literal(body, 4)},
    timeout=120,
)
print(reply.json())`;
}

function node(method: string, body: object, keyed: boolean): string {
  const key = keyed ? "process.env.VERMILION_API_KEY" : `"unused"`;
  const shown = method === "completions" ? "choices[0].text" : "choices[0].message.content";
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${location.origin}/v1", apiKey: ${key} });
const answer = await client.${method}.create(${JSON.stringify(body, null, 2)});
console.log(answer.${shown});`;
}

function nodePlain(path: string, body: object, keyed: boolean): string {
  const key = keyed ? `\n    Authorization: \`Bearer \${process.env.VERMILION_API_KEY}\`,` : "";
  return `const reply = await fetch("${location.origin}${path}", {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key}
  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
console.log(await reply.json());`;
}

/** A value as Python writes it. */
function literal(value: unknown, indent: number): string {
  const pad = " ".repeat(indent + 4);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((item) => pad + literal(item, indent + 4)).join(",\n")},\n${" ".repeat(indent)}]` : "[]";
  }
  if (typeof value === "object") {
    const rows = Object.entries(value as object);
    const inner = rows.map(([name, item]) => `${pad}${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
    return rows.length ? `{\n${inner.join(",\n")},\n${" ".repeat(indent)}}` : "{}";
  }
  return JSON.stringify(value);
}
