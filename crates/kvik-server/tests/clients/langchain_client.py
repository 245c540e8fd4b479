"""LangChain against a Kvik server: python langchain_client.py BASE_URL API_KEY"""

import asyncio
import sys

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import OpenAI as Official
from pydantic import BaseModel

base_url, key = sys.argv[1:]
model = Official(base_url=base_url, api_key=key).models.list().data[0].id
options = dict(base_url=base_url, api_key=key, model=model, max_retries=0, timeout=120)
chat = ChatOpenAI(temperature=0, max_tokens=24, stream_usage=True, **options)
hello = [SystemMessage("Be brief."), HumanMessage("hello")]

answer = chat.invoke(hello)
assert answer.content == "".join(chunk.content for chunk in chat.stream(hello)), answer
assert answer.usage_metadata["total_tokens"] > 0
print("chat ok")

batch = chat.batch([hello, hello])
assert batch[0].content == batch[1].content == asyncio.run(chat.ainvoke(hello)).content
print("batch ok")


@tool
def get_weather(celsius: bool) -> str:
    """The weather."""
    return "rain"


calling = ChatOpenAI(temperature=0, max_tokens=200, **options).bind_tools([get_weather], tool_choice="required", strict=True,
                                                                         parallel_tool_calls=False)
called = calling.invoke(hello)
assert called.tool_calls[0]["name"] == "get_weather" and "celsius" in called.tool_calls[0]["args"], called
chat.invoke([*hello, called, ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"])])
print("functions ok")


class Answer(BaseModel):
    yes: bool


structured = ChatOpenAI(temperature=0, max_tokens=60, **options).with_structured_output(Answer, method="json_schema")
assert isinstance(structured.invoke(hello), Answer)
print("structured ok")

assert OpenAI(temperature=0, max_tokens=8, **options).invoke("Once upon")
print("completion ok")

embeddings = OpenAIEmbeddings(base_url=base_url, api_key=key, model=model, check_embedding_ctx_length=False)
assert len(embeddings.embed_documents(["a cat", "a dog"])) == 2
print("embeddings ok")

responses = ChatOpenAI(temperature=0, max_tokens=16, use_responses_api=True, **options)
assert responses.invoke("hello").text
print("responses ok")
