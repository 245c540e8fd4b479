"""Golden file for chat templates: what jinja2 writes under the settings of `transformers`.

    pip install transformers jinja2
    python tools/goldens/chat_template_goldens.py crates/kvik-model/tests/goldens/chat_templates.json

The templates write the formats of well-known model families, with the constructs that the families' own templates
use: namespaces, loop controls, slices, string methods, macros, `tojson`, `raise_exception`.
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

TEMPLATES = {
    "ChatML": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}
""",
    "Llama 3": """{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}
    {% if loop.index0 == 0 %}
        {% set content = bos_token + content %}
    {% endif %}
    {{- content }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{% endif %}
""",
    "Gemma": """{{ bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {%- set opening = messages[0].content + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Turns must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if turn.role == 'assistant' else turn.role %}
    {{- '<start_of_turn>' + role + '\\n' + (opening if loop.first else '') }}
    {{- turn.content.strip() + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif -%}
""",
    "Qwen2.5": """{%- set first_is_system = messages and messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' }}
{{- messages[0].content if first_is_system else 'You are Qwen.' }}
{%- if tools %}
    {{- '\\n\\n# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "Qwen3": """{%- set ns = namespace(last_query=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "Phi-3": """{% for message in messages %}
{% if message['role'] == 'system' and message['content'] %}
{{'<|system|>\n' + message['content'] + '<|end|>\n'}}
{% elif message['role'] == 'user' %}
{{'<|user|>\n' + message['content'] + '<|end|>\n'}}
{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\n' }}
{% else %}
{{ eos_token }}
{% endif %}""",
    "Mistral": """{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last %}
            {{- '[INST] ' + system_message + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "Hermes calls": """{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "Llama 3.1 calls": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if tools is not none %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "Mistral calls": """{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != 'return' %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ', ' }}
                    {%- endif %}
                {%- endfor %}
                {{- '}}' }}
                {{- ', ' if not loop.last else ']' }}
            {%- endfor %}
            {{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
""",
    "a bit of everything": """{# comments vanish #}
{%- macro turn(name, text='', sep=': ') -%}
{{ name | upper }}{{ sep }}{{ text | replace('\\n', ' / ') }}
{% endmacro -%}
{% for message in messages %}
    {% if message.content == '' %}{% break %}{% endif %}
  {% generation %}
{{ loop.index }}/{{ loop.length }}{{ ' first' if loop.first }}{{ ' last' if loop.last }} {{ turn(message.role, message['content'], sep=' > ') }}
  {%- endgeneration %}

{% else %}
nothing said
{% endfor %}
{% for key, value in (extra or {}).items() %}
{{ key }}={{ value | tojson }} {{ value | tojson(indent=2) }} {{ value | tojson(sort_keys=true, separators=(',', ':')) }} {{ value | tojson(ensure_ascii=true) }}
{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ tools is none }} {{ tools is defined }} {{ missing is defined }} {{ tools is iterable }} {{ 'ab' in 'cabd' }} {{ missing }}
{{ [1, 2.5, true, none] | tojson }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 1 / 4 }} {{ 'x' ~ 1 ~ 2.0 }}
{{ " A b ".strip().lower().title() }} {{ "a,b,,c".split(',') | length }} {{ "abc"[::-1] }} {{ "abc"[-2:] }} {{ 'a' if 0 else 'b' }}
{%- set ns = namespace(n=0) %}{% for i in range(2, 10, 3) %}{% set ns.n = ns.n + i %}{% endfor %} {{ ns.n }}
{{ {'a': 1}.get('b', 'none') }} {{ 'done' | capitalize }}{{ bos_token is defined and eos_token == '</s>' }}
""",
}

CONVERSATIONS = [
    [("user", "Why is the sky blue?")],
    [("system", "You are a pirate."), ("user", "Hello")],
    [
        ("system", " Be brief.\n"),
        ("user", "  a b \n"),
        ("assistant", "Ahoy <b>\"x\"</b> 'é' 日本\n"),
        ("user", "And?\n\nMore?"),
    ],
    [("user", "2+2?"), ("assistant", "<think>\nhmm\n</think>\n\n4"), ("user", "3+3?"), ("assistant", "6")],
    [("user", "a"), ("user", "b")],
    [("user", "a"), ("assistant", "")],
    [],
]



def call(id: str, name: str, arguments) -> dict:
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


ANSWER = {"role": "tool", "content": '{"t": 21.5, "é": "<b>"}', "tool_call_id": "abcdefgh1", "name": "weather"}
# For the templates that know of calls.
CALLING_CONVERSATIONS = [
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call("abcdefgh1", "weather", {"city": "Sèvres \"x\"", "n": [1, 2.5]})]},
        ANSWER,
    ],
    [
        {"role": "user", "content": "Weather twice?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("abcdefgh1", "weather", {}), call("abcdefgh2", "weather", {"z": None, "a": True})],
        },
        ANSWER,
        ANSWER | {"content": "rain", "tool_call_id": "abcdefgh2"},
        {"role": "assistant", "content": "Sun, then rain."},
        {"role": "user", "content": "Thanks"},
    ],
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call("", "weather", "{broken")]}],
]

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a <city> & 'more'", "days": [1, 2.5]}}]
EXTRA = {"k": {"z": [1, {"y": "é\t\"\\/\u0001\u007f\U0001f600"}, []], "a": {}, "b": None, "c": -0.5, "d": 10**15}}


def main(path: Path) -> None:
    cases = []
    for name, template in TEMPLATES.items():
        compiled = _compile_jinja_template(template)
        conversations = [[{"role": role, "content": content} for role, content in each] for each in CONVERSATIONS]
        if name.endswith("calls"):
            conversations += CALLING_CONVERSATIONS
        for index, messages in enumerate(conversations):
            variables = {"bos_token": "<s>", "eos_token": "</s>"}
            if index == 1 or index >= len(CONVERSATIONS):
                variables |= {"tools": TOOLS, "enable_thinking": False}
            if index == 2:
                variables |= {"extra": EXTRA}
            add = index not in (3, 5)
            case = {"template": name, "messages": messages, "add_generation_prompt": add, "variables": variables}
            defaults = {"tools": None, "documents": None}
            try:
                case["expected"] = compiled.render(
                    messages=messages, add_generation_prompt=add, **(defaults | variables)
                )
            except Exception as error:
                case["refused"] = str(error)
            cases.append(case)
    golden = {"templates": TEMPLATES, "cases": cases}
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
