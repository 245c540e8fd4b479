//! Every route: what it answers, that a stream says the same as the whole, and what it refuses.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use async_openai::types::{
    chat::{CreateChatCompletionResponse, CreateChatCompletionStreamResponse},
    completions::CreateCompletionResponse,
    embeddings::CreateEmbeddingResponse,
    models::ListModelResponse,
    responses::{Response, ResponseStreamEvent},
};
use serde_json::{Value, json};
use support::{CONTEXT_TOKENS, MODEL, start};

fn said(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// `request` and more fields.
fn with(request: &Value, more: Value) -> Value {
    let mut request = request.clone();
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn joined(events: &[Value], index: u64, pointer: &str) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let mine = choices.filter(|choice| choice["index"] == index);
    mine.filter_map(|choice| choice.pointer(pointer)?.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_chat_is_answered_whole_and_as_a_stream() {
    let server = start("");
    let client = server.client();
    let request = json!({"model": MODEL, "messages": said("hello"), "temperature": 0, "max_tokens": 24,
                         "logprobs": true, "top_logprobs": 2, "n": 2});
    let whole = client.post("/v1/chat/completions", &request).ok();
    let typed: CreateChatCompletionResponse = serde_json::from_value(whole.clone()).unwrap();
    assert_eq!((typed.choices.len(), typed.model.as_str()), (2, MODEL));
    let usage = typed.usage.unwrap();
    assert_eq!(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens);
    assert!(usage.completion_tokens > 0 && usage.completion_tokens <= 48, "{usage:?}");

    let streamed = with(&request, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let answer = client.post("/v1/chat/completions", &streamed);
    assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    let events = answer.events();
    for event in &events {
        serde_json::from_value::<CreateChatCompletionStreamResponse>(event.clone()).unwrap();
    }
    let (last, pieces) = events.split_last().unwrap();
    // Which answer found the other's prompt in the cache may differ.
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], whole["usage"][field], "{field}");
    }
    for (index, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
        assert_eq!(joined(pieces, index, "/delta/content"), choice["message"]["content"].as_str().unwrap());
        assert_eq!(joined(pieces, index, "/finish_reason"), choice["finish_reason"].as_str().unwrap());
        let logprobs: Vec<&Value> = pieces
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|piece| piece["index"] == index)
            .filter_map(|piece| piece["logprobs"]["content"].as_array())
            .flatten()
            .collect();
        let expected: Vec<&Value> = choice["logprobs"]["content"].as_array().unwrap().iter().collect();
        assert_eq!(logprobs, expected);
        assert_eq!(expected[0]["top_logprobs"].as_array().unwrap().len(), 2);
        // The most likely token was taken.
        assert_eq!(expected[0]["logprob"], expected[0]["top_logprobs"][0]["logprob"]);
    }
    // Greedy answers are all the same.
    assert_eq!(whole["choices"][0]["message"], whole["choices"][1]["message"]);
}

#[test]
fn a_seed_repeats_its_answers_and_gives_each_its_own() {
    let server = start("");
    let client = server.client();
    let ask = |seed: i64| {
        let request = json!({"messages": said("x"), "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0,
                             "seed": seed, "n": 2, "max_tokens": 16});
        let answer = client.post("/v1/chat/completions", &request).ok();
        [0, 1].map(|index| answer["choices"][index]["message"]["content"].as_str().unwrap().to_owned())
    };
    let first = ask(7);
    assert_eq!(first, ask(7));
    assert_ne!(first[0], first[1]);
    assert_eq!(first[1], ask(8)[0]);
    assert_ne!(first[0], ask(-7)[0]);
}

#[test]
fn a_text_is_continued_whole_and_as_a_stream() {
    let server = start("");
    let client = server.client();
    let request = json!({"prompt": ["one", "two"], "temperature": 0, "logprobs": 3, "max_tokens": 12});
    let whole = client.post("/v1/completions", &request).ok();
    serde_json::from_value::<CreateCompletionResponse>(whole.clone()).unwrap();
    let events = client.post("/v1/completions", &with(&request, json!({"stream": true}))).events();
    for (index, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
        assert_eq!(joined(&events, index, "/text"), choice["text"].as_str().unwrap());
        assert_eq!(joined(&events, index, "/finish_reason"), choice["finish_reason"].as_str().unwrap());
        let logprobs = &choice["logprobs"];
        let count = logprobs["tokens"].as_array().unwrap().len();
        for list in ["token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
        }
        assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 3);
    }
    // The default is OpenAI's, and the prompt can be given back or come as tokens.
    let echoed =
        client.post("/v1/completions", &json!({"prompt": "ab", "temperature": 0, "echo": true})).ok();
    let tokens = client.post("/v1/completions", &json!({"prompt": [97, 98], "temperature": 0})).ok();
    assert!(tokens["usage"]["completion_tokens"].as_u64().unwrap() <= 16);
    let text = format!("ab{}", tokens["choices"][0]["text"].as_str().unwrap());
    assert_eq!(echoed["choices"][0]["text"], text);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_in_it() {
    let server = start("");
    let client = server.client();
    let request = json!({"prompt": "abc", "temperature": 0, "max_tokens": 40, "ignore_eos": true});
    let whole = client.post("/v1/completions", &request).ok();
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(10).take(2).collect();
    let expected = &text[..text.find(&stop).unwrap()];
    for stop in [json!(stop), json!(["never", stop])] {
        let stopped = client.post("/v1/completions", &with(&request, json!({"stop": stop}))).ok();
        assert_eq!(stopped["choices"][0]["text"], expected);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn responses_are_given_whole_and_as_a_stream() {
    let server = start("");
    let client = server.client();
    let request = json!({"model": MODEL, "input": "hello", "instructions": "Be brief.", "temperature": 0,
                         "max_output_tokens": 12, "metadata": {"a": "b"}});
    let whole = client.post("/v1/responses", &request).ok();
    serde_json::from_value::<Response>(whole.clone()).unwrap();
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    let answer = client.post("/v1/responses", &with(&request, json!({"stream": true})));
    let events = answer.events();
    for (number, event) in (0u64..).zip(&events) {
        serde_json::from_value::<ResponseStreamEvent>(event.clone())
            .unwrap_or_else(|e| panic!("{e}: {event}"));
        assert_eq!(event["sequence_number"], number);
    }
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    assert_eq!(deltas.map(|event| event["delta"].as_str().unwrap()).collect::<String>(), text);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], text);
    for field in ["status", "incomplete_details", "metadata", "instructions"] {
        assert_eq!(last[field], whole[field], "{field}");
    }
    let chat = json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
                      "temperature": 0, "max_tokens": 12});
    assert_eq!(client.post("/v1/chat/completions", &chat).ok()["choices"][0]["message"]["content"], text);
    let parts = json!({"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
                       "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 12});
    assert_eq!(client.post("/v1/responses", &parts).ok()["output"][0]["content"][0]["text"], text);
}

#[test]
fn embeddings_are_unit_vectors_in_either_form() {
    let server = start("");
    let client = server.client();
    let floats = client.post("/v1/embeddings", &json!({"input": ["a cat", "a cat", "xyz"]})).ok();
    let typed: CreateEmbeddingResponse = serde_json::from_value(floats.clone()).unwrap();
    let vectors: Vec<Vec<f32>> = typed.data.into_iter().map(|data| data.embedding).collect();
    for vector in &vectors {
        let square: f32 = vector.iter().map(|x| x * x).sum();
        assert!((square - 1.0).abs() < 1e-3, "{square}");
    }
    assert_eq!(vectors[0], vectors[1]);
    assert_ne!(vectors[0], vectors[2]);
    let base64 = client.post("/v1/embeddings", &json!({"input": "a cat", "encoding_format": "base64"})).ok();
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).unwrap();
    let decoded: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    assert_eq!(decoded, vectors[0]);
    // Whatever pipeline answers have, vectors are of whole caches.
    let compressed = start("kv = \"snapkv(budget=64)\"");
    let same = compressed.client().post("/v1/embeddings", &json!({"input": "a cat"})).ok();
    assert_eq!(same["data"][0]["embedding"], floats["data"][0]["embedding"]);
}

#[test]
fn tokens_go_there_and_back() {
    let server = start("");
    let client = server.client();
    let text = "héllo, wörld 🎉\u{0}";
    let tokens = client.post("/tokenize", &json!({"content": text, "with_pieces": true})).ok();
    assert_eq!(tokens["count"], text.len());
    assert_eq!(tokens["max_model_len"], CONTEXT_TOKENS);
    let back = client.post("/detokenize", &json!({"tokens": tokens["tokens"]})).ok();
    assert_eq!(back["content"], text);
    let chat = client.post("/tokenize", &json!({"messages": said("a")})).ok();
    let written = client.post("/detokenize", &json!({"tokens": chat["tokens"]})).ok();
    assert_eq!(written["content"], "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn what_the_server_is_can_be_read() {
    let server = start("kv = \"snapkv(budget=512)\"");
    let client = server.client();
    let models: ListModelResponse = serde_json::from_value(client.get("/v1/models").ok()).unwrap();
    assert_eq!(models.data[0].id, MODEL);
    assert_eq!(client.get("/v1/models/tiny").ok()["context_tokens"], CONTEXT_TOKENS);
    client.get("/v1/models/other").error(404);
    assert_eq!(client.get("/health").ok()["status"], "ok");
    let kv = client.get("/v1/kv").ok();
    assert_eq!(kv["pipeline"], "snapkv(budget=512)");
    assert!(kv["methods"].as_array().unwrap().iter().any(|method| method["name"] == "kivi"));
    client.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 5, "ignore_eos": true})).ok();
    let metrics = client.get("/metrics").text();
    for line in [
        "kvik_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "kvik_completion_tokens_total 5",
        "kvik_time_to_first_token_seconds_count 1",
        "kvik_panics_total 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    for page in ["/", "/dashboard"] {
        assert!(client.get(page).header("content-type").unwrap().starts_with("text/html"), "{page}");
    }
    assert!(client.get("/openapi.json").ok()["paths"]["/v1/chat/completions"]["post"].is_object());
}

/// What of a schema a value does not have; lists are looked at as far as they are filled.
fn missing(description: &Value, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => description.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match value.get(name) {
            Some(value) => missing(description, field, value, &path, found),
            None => found.push(path),
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        missing(description, &schema["items"], value, &format!("{path}[{index}]"), found);
    }
}

#[test]
fn memory_and_prefixes_show_as_they_are_described() {
    let server = start("");
    let client = server.client();
    let shared = "ab".repeat(64);
    for end in ["c", "d"] {
        let prompt = format!("{shared}{}", end.repeat(64));
        client.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2})).ok();
    }
    // What the loop knows is a moment old.
    let begun = Instant::now();
    let service = loop {
        let service = client.get("/v1/kv").ok()["service"].take();
        if service["running"] == 0 && service["prefix_trees"][0]["nodes"].as_array().map(Vec::len) == Some(3)
        {
            break service;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{service}");
        thread::sleep(Duration::from_millis(20));
    };
    let nodes = service["prefix_trees"][0]["nodes"].as_array().unwrap();
    let shape: Vec<[u64; 3]> = nodes
        .iter()
        .map(|node| ["depth", "tokens", "children"].map(|field| node[field].as_u64().unwrap()))
        .collect();
    assert_eq!(shape, [[0, 128, 2], [1, 64, 0], [1, 64, 0]]);
    let encodings = service["kv"]["encodings"].as_array().unwrap();
    assert_eq!((encodings.len(), &encodings[0]["encoding"]), (1, &json!("bf16")));
    assert_eq!(encodings[0]["ram_bytes"], service["kv"]["ram_bytes"]);
    let metrics = client.get("/metrics").text();
    let line = format!("kvik_kv_bytes{{place=\"ram\",encoding=\"bf16\"}} {}", service["kv"]["ram_bytes"]);
    assert!(metrics.lines().any(|one| one == line), "{line} is not in\n{metrics}");

    let description = client.get("/openapi.json").ok();
    let mut found = Vec::new();
    let schema = &description["components"]["schemas"]["KvReport"];
    missing(&description, schema, &client.get("/v1/kv").ok(), "", &mut found);
    assert!(found.is_empty(), "described, and not there: {found:?}");
    assert!(description["components"]["schemas"]["PrefixNodeStatus"]["properties"]["locks"].is_object());
}

#[test]
fn answers_follow_the_form_that_is_asked_for() {
    let server = start("");
    let client = server.client();
    let ask = |format: Value, seed: u64| {
        let request = json!({"messages": said("x"), "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0,
                             "seed": seed, "max_tokens": 400, "response_format": format});
        let answer = client.post("/v1/chat/completions", &request).ok();
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["colour", "n"],
                        "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}}});
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": true}});
    for seed in 0..5 {
        let value: Value = serde_json::from_str(&ask(schema.clone(), seed)).unwrap();
        assert!(
            ["red", "blue"].contains(&value["colour"].as_str().unwrap())
                && value["n"].as_u64().unwrap() < 100
        );
        let digits = ask(json!({"type": "regex", "regex": "[0-9]{3}-[ab]+c"}), seed);
        assert!(digits.ends_with('c') && digits.as_bytes()[3] == b'-', "{digits}");
        let word = ask(json!({"type": "grammar", "grammar": "start: \"yes\" | \"no\""}), seed);
        assert!(["yes", "no"].contains(&word.as_str()), "{word}");
    }
    let ask = |format: Value| {
        client.post("/v1/chat/completions", &json!({"messages": said("x"), "response_format": format}))
    };
    let param = |format: Value| ask(format).error(400)["param"].as_str().unwrap().to_owned();
    assert_eq!(param(json!({"type": "poem"})), "response_format.type");
    assert_eq!(param(json!({"type": "json_schema"})), "response_format.json_schema");
    assert_eq!(param(json!({"type": "grammar", "grammar": "start: ("})), "response_format");
    assert_eq!(param(json!({"type": "regex", "regex": "("})), "response_format");
}

fn weather() -> Value {
    json!([{"type": "function", "function": {"name": "get_weather", "description": "The weather of a town",
            "parameters": {"type": "object", "required": ["town"], "additionalProperties": false,
                           "properties": {"town": {"enum": ["Oslo", "Bergen"]}}}}}])
}

#[test]
fn functions_are_called_whole_and_as_a_stream() {
    let server = start("");
    let client = server.client();
    let request = json!({"messages": said("weather?"), "tools": weather(), "tool_choice": "required", "temperature": 0,
                         "parallel_tool_calls": false, "max_tokens": 200});
    let whole = client.post("/v1/chat/completions", &request).ok();
    serde_json::from_value::<CreateChatCompletionResponse>(whole.clone()).unwrap();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert!(choice["message"]["content"].is_null());
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Oslo", "Bergen"].contains(&arguments["town"].as_str().unwrap()));

    let events = client.post("/v1/chat/completions", &with(&request, json!({"stream": true}))).events();
    for event in &events {
        serde_json::from_value::<CreateChatCompletionStreamResponse>(event.clone()).unwrap();
    }
    assert_eq!(joined(&events, 0, "/delta/tool_calls/0/function/name"), "get_weather");
    let streamed = joined(&events, 0, "/delta/tool_calls/0/function/arguments");
    assert_eq!(streamed, call["function"]["arguments"].as_str().unwrap());
    assert_eq!(joined(&events, 0, "/finish_reason"), "tool_calls");

    // The call and its answer are read back.
    let mut messages = said("weather?");
    messages.as_array_mut().unwrap().extend([
        choice["message"].clone(),
        json!({"role": "tool", "tool_call_id": call["id"], "content": "rain"}),
    ]);
    let next = json!({"messages": messages, "tools": weather(), "tool_choice": "none", "max_tokens": 4});
    client.post("/v1/chat/completions", &next).ok();
    let named = json!({"type": "function", "function": {"name": "get_time"}});
    let wrong = with(&request, json!({"tool_choice": named}));
    assert_eq!(client.post("/v1/chat/completions", &wrong).error(400)["param"], "tool_choice");
}

#[test]
fn a_pipeline_comes_with_a_request() {
    let server = start("");
    let client = server.client();
    let text = "word ".repeat(100);
    let ask = |kv: &str| {
        client.post(
            "/v1/completions",
            &json!({"prompt": text, "temperature": 0, "max_tokens": 20, "kv": kv, "ignore_eos": true}),
        )
    };
    let full = ask("full").ok()["choices"][0]["text"].clone();
    assert_eq!(
        client
            .post(
                "/v1/completions",
                &json!({"prompt": text, "temperature": 0, "max_tokens": 20, "ignore_eos": true})
            )
            .ok()["choices"][0]["text"],
        full
    );
    assert_ne!(ask("streaming(budget=66,sinks=2)").ok()["choices"][0]["text"], full);
    let error = ask("snapkv(budget=512)+kivvi").error(400);
    assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some("kv"), Some("invalid_pipeline")));
    assert!(error["message"].as_str().unwrap().contains("character 19"), "{error}");
    ask("tier(path=/etc)").error(400);
}

#[test]
fn what_is_wrong_is_named() {
    let server = start("");
    let client = server.client();
    let chat =
        |more: Value| client.post("/v1/chat/completions", &with(&json!({"messages": said("a")}), more));
    for (field, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("min_p", json!(2)),
        ("repeat_penalty", json!(0)),
        ("frequency_penalty", json!(3)),
        ("presence_penalty", json!(-3)),
        ("logit_bias", json!({"99999": 1})),
        ("logit_bias", json!({"x": 1})),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("max_tokens", json!(0)),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 1000])),
        ("stop", json!("x".repeat(2000))),
        ("stop", json!(7)),
        ("top_logprobs", json!(3)),
        ("kv", json!("nothing")),
        ("messages", json!([])),
        ("messages[0].role", json!([])),
    ] {
        let more = match field {
            "messages[0].role" => json!({"messages": [{"role": "wizard", "content": "x"}]}),
            field => json!({ field: value }),
        };
        assert_eq!(chat(more).error(400)["param"], field, "{field}: {value}");
    }
    assert_eq!(chat(json!({"model": "gpt-9"})).error(404)["code"], "model_not_found");
    let long = json!({"messages": said(&"x".repeat(CONTEXT_TOKENS + 1))});
    assert_eq!(client.post("/v1/chat/completions", &long).error(400)["code"], "context_length_exceeded");
    client.post("/v1/completions", &json!({})).error(400);
    client.post("/v1/completions", &json!({"prompt": []})).error(400);
    client.post("/v1/completions", &json!({"prompt": [9_999_999]})).error(400);
    client.post("/v1/completions", &json!({"prompt": "a", "suffix": "b"})).error(400);
    client.post("/v1/embeddings", &json!({"input": ""})).error(400);
    client.post("/v1/responses", &json!({"input": "a", "previous_response_id": "resp_1"})).error(400);
    client.post("/tokenize", &json!({})).error(400);
    client.get("/nowhere").error(404);
    client.get("/v1/completions").error(405);
    // Unknown fields and explicit nulls are fine.
    chat(json!({"brand_new": {"deep": [1, 2]}, "stop": null, "max_tokens": 2, "tools": null, "user": "u"}))
        .ok();
}
