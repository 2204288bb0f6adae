// OpenAI's client for Node on /v1/responses: whole, streamed, parsed by zod, a function called and answered.
import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const question = "What is the capital of France? Answer in one short sentence.";
const asked = { model, input: question, max_output_tokens: 24 };
const told = {};

const whole = await client.responses.create(asked);
told.answer = whole.output_text;
told.usage = whole.usage.total_tokens;

told.events = [];
for await (const event of await client.responses.create({ ...asked, stream: true })) {
  told.events.push([event.sequence_number, event.type]);
  told.streamed = (told.streamed ?? "") + (event.type === "response.output_text.delta" ? event.delta : "");
  told.streamedUsage = event.response?.usage?.total_tokens;
}

const format = zodTextFormat(z.object({ city: z.string() }), "capital");
told.parsed = (await client.responses.parse({ ...asked, text: { format } })).output_parsed;
const helper = client.responses.stream({ ...asked, text: { format } });
told.helped = (await helper.finalResponse()).output_parsed;

const parameters = z.object({ level: z.union([z.literal(1), z.literal(2), z.literal(3)]) });
const tools = [zodResponsesFunction({ name: "set_volume", description: "Set the volume of the radio", parameters })];
const calling = { ...asked, max_output_tokens: 64, tools, tool_choice: "required", parallel_tool_calls: false };
const [call] = (await client.responses.parse(calling)).output.filter((item) => item.type === "function_call");
told.call = { name: call.name, level: call.parsed_arguments.level };
told.callEvents = [];
told.callArguments = "";
for await (const event of client.responses.stream(calling)) {
  if (event.type === "response.function_call_arguments.delta") told.callArguments += event.delta;
  if (event.type !== told.callEvents.at(-1)) told.callEvents.push(event.type);
}

const output = { type: "function_call_output", call_id: call.call_id, output: "done" };
const { parsed_arguments, ...made } = call;
const input = [{ role: "user", content: question }, made, output];
told.answered = (await client.responses.create({ ...asked, input, tools, max_output_tokens: 8 })).status;

told.cut = (await client.responses.create({ ...asked, max_output_tokens: 2 })).incomplete_details.reason;
const next = await client.responses.create({ ...asked, previous_response_id: whole.id });
told.continued = next.usage.input_tokens > whole.usage.input_tokens;
told.kept = (await client.responses.retrieve(whole.id)).output_text;
await client.responses.delete(whole.id);
told.gone = await client.responses
  .create({ ...asked, previous_response_id: whole.id })
  .catch((error) => ({ status: error.status, param: error.param, message: error.message }));
console.log(JSON.stringify(told));
