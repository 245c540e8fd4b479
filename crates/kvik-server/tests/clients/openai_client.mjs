// The official JavaScript client against a Kvik server: node openai_client.mjs BASE_URL API_KEY

import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'hello' }];
const greedy = { model, messages, temperature: 0, max_tokens: 24 };

const whole = await client.chat.completions.create(greedy);
let text = '';
let usage;
for await (const chunk of await client.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.total_tokens, whole.usage.total_tokens);
console.log('chat ok');

const parameters = { type: 'object', required: ['town'], additionalProperties: false, properties: { town: { enum: ['Oslo', 'Bergen'] } } };
const tools = [{ type: 'function', function: { name: 'get_weather', parameters } }];
const forced = { ...greedy, max_tokens: 200, tools, tool_choice: 'required', parallel_tool_calls: false };
const called = await client.chat.completions.create(forced);
const [call] = called.choices[0].message.tool_calls;
assert.ok(['Oslo', 'Bergen'].includes(JSON.parse(call.function.arguments).town));
const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
console.log('functions ok');

const schema = { type: 'json_schema', json_schema: { name: 'town', schema: parameters, strict: true } };
const structured = await client.chat.completions.create({ ...greedy, max_tokens: 60, response_format: schema });
assert.ok(JSON.parse(structured.choices[0].message.content).town);
console.log('structured ok');

const completion = await client.completions.create({ model, prompt: 'Once upon', max_tokens: 8, temperature: 0 });
assert.equal(completion.object, 'text_completion');
const response = await client.responses.create({ model, input: 'hello', temperature: 0, max_output_tokens: 16 });
let delta = '';
for await (const event of await client.responses.create({ model, input: 'hello', temperature: 0, max_output_tokens: 16, stream: true })) {
  if (event.type === 'response.output_text.delta') delta += event.delta;
}
assert.equal(delta, response.output_text);
console.log('responses ok');

const { data } = await client.embeddings.create({ model, input: ['a cat', 'a dog'] });
assert.equal(data.length, 2);
assert.ok(Math.abs(data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
console.log('embeddings ok');

await assert.rejects(client.chat.completions.create({ ...greedy, messages: [] }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ ...greedy, model: 'gpt-9' }), OpenAI.NotFoundError);

// A reader that goes away.
const abandoned = await client.chat.completions.create({ ...greedy, max_tokens: 500, stream: true });
for await (const _ of abandoned) break;
await client.chat.completions.create({ ...greedy, max_tokens: 2 });
console.log('errors ok');
