// Continue's own adapters: chat, autocomplete, the next edit and apply, as its editors ask for them.
import { constructLlmApi } from "@continuedev/openai-adapters";

const [apiBase, model] = process.argv.slice(2);
const signal = new AbortController().signal;
const inception = constructLlmApi({ provider: "inception", apiKey: "unused", apiBase: `${apiBase}/` });
const openai = constructLlmApi({ provider: "openai", apiKey: "unused", apiBase: `${apiBase}/` });
const bare = constructLlmApi({ provider: "inception", apiKey: "unused", apiBase });
const told = {};

async function text(stream) {
  let all = "";
  for await (const chunk of stream) all += chunk.choices[0]?.delta?.content ?? "";
  return all;
}

const messages = [
  { role: "user", content: "What is the capital of France? Answer in one short sentence." },
];
told.chat = await text(
  inception.chatCompletionStream({ model, messages, max_tokens: 24, stream: true, nextEdit: false }, signal),
);

const gap = {
  model,
  prompt: "def add(a, b):\n    return ",
  suffix: "\n",
  max_tokens: 8,
  temperature: 0,
  presence_penalty: 1.5,
  stop: ["<|endoftext|>"],
  stream: true,
};
told.autocomplete = await text(inception.fimStream(gap, signal));
told.atTheEnd = await text(inception.fimStream({ ...gap, suffix: " " }, signal));
told.fim = await text(openai.fimStream(gap, signal));
told.withoutSlash = await text(bare.fimStream(gap, signal));

const region = `<|recently_viewed_code_snippets|>

<|/recently_viewed_code_snippets|>

<|current_file_content|>
current_file_path: a.py
<|code_to_edit|>
count = 1<|cursor|>
<|/code_to_edit|>
print(count)
<|/current_file_content|>

<|edit_diff_history|>
--- a.py
+++ a.py
@@ -1 +1 @@
-number = 1
+count = 1
<|/edit_diff_history|>`;
const edit = {
  model: "mercury-coder",
  max_tokens: 32,
  stream: false,
  messages: [
    { role: "system", content: "You predict the next edit." },
    { role: "user", content: `${region}<|!@#IS_NEXT_EDIT!@#|>` },
  ],
};
told.edit = (await inception.chatCompletionNonStream(edit, signal)).choices[0].message.content;

const apply = `Rewrite the file with the change applied.

Original:
\`\`\`python
x = 1
\`\`\`

Change:
\`\`\`python
x = 2
\`\`\`
<|!@#IS_APPLY!@#|>`;
told.apply = await text(
  inception.chatCompletionStream(
    { model, messages: [{ role: "user", content: apply }], max_tokens: 24, stream: true },
    signal,
  ),
);
console.log(JSON.stringify(told));
