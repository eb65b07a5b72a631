// Chat templates that use what the templates of Qwen2.5, Qwen3 and Llama 3 use: branches for tools, namespaces, slices,
// string methods, dates, exceptions. The texts are our own.
import { expect, test } from "vitest";
import { chatFormat } from "../../lib/engine/chat.ts";
import { tokenizerFromJson } from "../../lib/engine/tokenizer.ts";
import { buildByteTokenizer } from "../../lib/engine/tokenizer-build.ts";
import type { ChatFormat } from "../../lib/engine/tokenizer-types.ts";

const { tokenizerJson, tokenizerConfig } = buildByteTokenizer({
  phrases: [],
  specials: [
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
  ],
});
const tokenizer = tokenizerFromJson(tokenizerJson, tokenizerConfig);

const QWEN25 = `{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nBe useful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>' + tool_call.name + (tool_call.arguments | tojson) + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
`;

// Drops the reasoning of every turn before the last question of the user.
const QWEN3 = `{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}`;

// The same with the turns left as they were: what the error message asks for.
const QWEN3_WHOLE = QWEN3.replace("{%- elif '</think>' in content %}", "{%- elif false %}");

const LLAMA3 = `{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools.\\n\\n" }}
{%- endif %}
{{- "Today is " + date_string + ".\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
`;

const ids = (text: string): number[] => [...tokenizer.encode(text, { special: true })];
const stream = (chat: ChatFormat): number[] => [
  ...chat.opening({ system: " Be short. ", user: "Fix it." }),
  ...tokenizer.encode("ls"),
  ...chat.endOfTurn,
  ...chat.between("a.py\n"),
];

test("Qwen2.5: ChatML, and no tools were offered", () => {
  expect(stream(chatFormat(tokenizer, QWEN25))).toEqual(
    ids(
      "<|im_start|>system\n Be short. <|im_end|>\n<|im_start|>user\nFix it.<|im_end|>\n<|im_start|>assistant\n" +
        "ls<|im_end|>\n<|im_start|>user\na.py\n<|im_end|>\n<|im_start|>assistant\n",
    ),
  );
  const alone = chatFormat(tokenizer, QWEN25).opening({ user: "x" });
  expect(tokenizer.decode(alone)).toContain("Be useful.");
});

test("Qwen3: a template that drops earlier reasoning is refused; one that keeps it serves", () => {
  for (const variables of [{}, { enable_thinking: false }]) {
    expect(() => chatFormat(tokenizer, { source: QWEN3, variables })).toThrow(
      expect.objectContaining({
        code: "ERR_TOKENRING_PREFIX_CHANGED",
        message: expect.stringMatching(/rewrites history.*leaves earlier turns as they were/),
      }) as Error,
    );
  }
  expect(stream(chatFormat(tokenizer, QWEN3_WHOLE))).toEqual(
    ids(
      "<|im_start|>system\n Be short. <|im_end|>\n<|im_start|>user\nFix it.<|im_end|>\n<|im_start|>assistant\n" +
        "ls<|im_end|>\n<|im_start|>user\na.py\n<|im_end|>\n<|im_start|>assistant\n",
    ),
  );
});

test("Llama 3: bos, headers, trimmed messages, a date that stands still", () => {
  const chat = chatFormat(tokenizer, { source: LLAMA3, variables: { bos_token: "<|begin_of_text|>" } });
  expect(stream(chat)).toEqual(
    ids(
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday is 1 January 2025.\n\n" +
        "Be short.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nFix it.<|eot_id|>" +
        "<|start_header_id|>assistant<|end_header_id|>\n\nls<|eot_id|>" +
        "<|start_header_id|>user<|end_header_id|>\n\na.py<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
  );
  expect(chat.endOfTurn).toEqual([tokenizer.specialId("<|eot_id|>")]);
});
