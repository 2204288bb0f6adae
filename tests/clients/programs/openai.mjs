// OpenAI's client for Node: chat, streams, parsing, tools, completions, models, and what is not here.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const chat = {
  model,
  max_tokens: 24,
  messages: [{ role: "user", content: "What is the capital of France? Answer in one short sentence." }],
};
const told = {};

const whole = await client.chat.completions.create(chat);
told.answer = whole.choices[0].message.content;
told.usage = whole.usage.total_tokens;

let text = "";
const stream = await client.chat.completions.create({
  ...chat,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  told.streamedUsage = chunk.usage?.total_tokens ?? told.streamedUsage;
}
told.streamed = text;
told.helper = await client.chat.completions.stream(chat).finalContent();

const format = zodResponseFormat(z.object({ city: z.string() }), "capital");
const parsed = await client.chat.completions.parse({ ...chat, response_format: format });
told.parsed = parsed.choices[0].message.parsed;

const tool = {
  type: "function",
  function: {
    name: "set_volume",
    parameters: {
      type: "object",
      properties: { level: { type: "integer", enum: [1, 2, 3] } },
      required: ["level"],
      additionalProperties: false,
    },
  },
};
const called = await client.chat.completions.create({ ...chat, max_tokens: 64, tools: [tool], tool_choice: "required" });
told.call = called.choices[0].message.tool_calls[0].function;

const gap = { model, prompt: "def add(a, b):\n    return ", suffix: "\n", max_tokens: 8 };
told.completion = (await client.completions.create(gap)).choices[0].text;
told.models = (await client.models.list()).data.map((one) => one.id);
told.embeddings = await client.embeddings.create({ model, input: "x" }).catch((error) => error.message);
console.log(JSON.stringify(told));
