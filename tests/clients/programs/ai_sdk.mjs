// Vercel's AI SDK with its provider for OpenAI-compatible services: text, a stream, an object, a tool, a completion.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "vermilion",
  baseURL,
  apiKey: "unused",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const asked = {
  model: provider(name),
  maxRetries: 0,
  maxOutputTokens: 24,
  prompt: "What is the capital of France? Answer in one short sentence.",
};
const told = {};

const whole = await generateText(asked);
told.answer = whole.text;
told.tokens = whole.usage.totalTokens;

const stream = streamText(asked);
told.streamed = "";
for await (const piece of stream.textStream) told.streamed += piece;
told.streamedTokens = (await stream.usage).totalTokens;

const schema = z.object({ city: z.string() });
told.object = (await generateText({ ...asked, output: Output.object({ schema }) })).output;

const tools = {
  setVolume: tool({
    description: "Set the volume of the radio",
    inputSchema: z.object({ level: z.number().int().min(1).max(3) }),
    execute: async ({ level }) => `the volume is ${level}`,
  }),
};
const called = await generateText({ ...asked, maxOutputTokens: 64, tools, toolChoice: "required" });
told.call = called.toolCalls[0].input;
told.result = called.toolResults[0].output;

const completed = await generateText({
  model: provider.completionModel(name),
  maxRetries: 0,
  maxOutputTokens: 8,
  prompt: "Once upon a time",
});
told.completion = completed.text;
console.log(JSON.stringify(told));
