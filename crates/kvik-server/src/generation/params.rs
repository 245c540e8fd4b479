//! The fields that say how to generate, checked.

use kvik_engine::{SamplingOptions, sampling::InvalidSampling};
use kvik_kv::Pipeline;

use crate::{
    app::App,
    error::ApiError,
    pipeline,
    wire::generation::{GenerationFields, ResponseFormat, Stop},
};

/// Stop strings of one request.
const MOST_STOPS: usize = 64;
/// Bytes of one stop string.
const LONGEST_STOP: usize = 1024;
/// Tokens whose logits a request may change.
const MOST_BIASES: usize = 2048;
/// Tokens whose log-probabilities are reported beside the one that was chosen.
const MOST_TOP_LOGPROBS: usize = 20;

/// How to generate.
#[derive(Clone, Debug)]
pub struct Params {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Taken from the logit of a token once for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that the answer has.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How many answers to each prompt.
    pub n: usize,
    /// Tokens of an answer at most.
    pub max_tokens: Option<usize>,
    /// Tokens of an answer at least.
    pub min_tokens: usize,
    /// Go on after the end of text.
    pub ignore_end_of_text: bool,
    /// Send the answer as it comes.
    pub stream: bool,
    /// And say at its end what it took.
    pub include_usage: bool,
    /// What form the answer must have.
    pub format: Option<ResponseFormat>,
    /// What rewrites the cache.
    pub pipeline: Pipeline,
    /// Higher runs earlier.
    pub priority: i32,
}

impl Params {
    /// Checks `fields`.
    ///
    /// # Errors
    /// 400 with the field that cannot be; 404 for a model that is not here.
    pub fn new(app: &App, fields: GenerationFields) -> Result<Self, ApiError> {
        app.check_model(fields.model.as_deref())?;
        let defaults = SamplingOptions::default();
        let sampling = SamplingOptions {
            temperature: fields.temperature.unwrap_or(defaults.temperature),
            top_p: fields.top_p.unwrap_or(defaults.top_p),
            top_k: fields.top_k.unwrap_or(defaults.top_k),
            min_p: fields.min_p.unwrap_or(defaults.min_p),
            repeat_penalty: fields.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            // Negative seeds are fine with OpenAI: the bits are what counts.
            seed: fields.seed.map(i64::cast_unsigned),
            ..defaults
        };
        sampling.validate().map_err(|error| ApiError::invalid(error.to_string()).param(field_of(&error)))?;
        within("temperature", sampling.temperature, 0.0, 10.0)?;
        let max_tokens = fields.max_completion_tokens.or(fields.max_tokens);
        if max_tokens == Some(0) {
            let error = ApiError::invalid("max_tokens is 0: ask for at least one token, or leave it out");
            return Err(error.param("max_tokens"));
        }
        let min_tokens = fields.min_tokens.unwrap_or(0);
        if max_tokens.is_some_and(|max_tokens| min_tokens > max_tokens) {
            let error = ApiError::invalid("min_tokens is more than max_tokens: lower one or raise the other");
            return Err(error.param("min_tokens"));
        }
        let n = fields.n.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::invalid("n is 0: ask for at least one answer, or leave it out").param("n"));
        }
        let most = app.config.max_choices;
        if n > most {
            let message = format!("n is {n}: this server gives at most {most} answers to one request");
            return Err(ApiError::invalid(message).param("n"));
        }
        let pipeline = pipeline::of_request(fields.kv.as_deref(), &app.config)?;
        Ok(Self {
            frequency_penalty: within(
                "frequency_penalty",
                fields.frequency_penalty.unwrap_or(0.0),
                -2.0,
                2.0,
            )?,
            presence_penalty: within("presence_penalty", fields.presence_penalty.unwrap_or(0.0), -2.0, 2.0)?,
            logit_bias: logit_bias(fields.logit_bias.unwrap_or_default(), app.facts().vocabulary)?,
            stop: stop(fields.stop)?,
            n,
            max_tokens,
            min_tokens,
            ignore_end_of_text: fields.ignore_eos.unwrap_or(false),
            stream: fields.stream.unwrap_or(false),
            include_usage: fields.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            format: fields.response_format.filter(|format| format.kind != "text"),
            pipeline,
            priority: fields.priority.unwrap_or(0),
            sampling,
        })
    }
}

/// Checks how many log-probabilities are asked for beside that of the chosen token.
///
/// # Errors
/// 400 if they are too many.
pub fn top_logprobs(name: &str, asked: usize) -> Result<usize, ApiError> {
    if asked > MOST_TOP_LOGPROBS {
        let message = format!("{name} is {asked}: at most {MOST_TOP_LOGPROBS} are reported");
        return Err(ApiError::invalid(message).param(name));
    }
    Ok(asked)
}

fn field_of(error: &InvalidSampling) -> &'static str {
    match error {
        InvalidSampling::Temperature(_) => "temperature",
        InvalidSampling::TopP(_) => "top_p",
        InvalidSampling::MinP(_) => "min_p",
        InvalidSampling::RepeatPenalty(_) => "repeat_penalty",
        // Checked by their own fields before.
        InvalidSampling::Penalty(_) => "frequency_penalty",
        InvalidSampling::LogitBias { .. } => "logit_bias",
    }
}

fn within(name: &str, value: f32, min: f32, max: f32) -> Result<f32, ApiError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(format!("{name} is {value}: use a number from {min} to {max}")).param(name))
}

fn stop(given: Option<Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match given {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    let wrong = |message: String| Err(ApiError::invalid(message).param("stop"));
    if stops.len() > MOST_STOPS {
        return wrong(format!("stop has {} strings: at most {MOST_STOPS} are watched for", stops.len()));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > LONGEST_STOP) {
        return wrong(format!(
            "a stop string has {} bytes: at most {LONGEST_STOP} are watched for",
            long.len()
        ));
    }
    if stops.iter().any(String::is_empty) {
        return wrong("a stop string is empty: give it a character or leave it out".to_owned());
    }
    Ok(stops)
}

fn logit_bias(
    given: std::collections::BTreeMap<String, f32>,
    vocabulary: usize,
) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |message: String| Err(ApiError::invalid(message).param("logit_bias"));
    if given.len() > MOST_BIASES {
        return wrong(format!("logit_bias has {} tokens: at most {MOST_BIASES} can be changed", given.len()));
    }
    let mut biases = Vec::with_capacity(given.len());
    for (token, bias) in given {
        match token.parse::<u32>() {
            Ok(id) if (id as usize) < vocabulary => {
                biases.push((id, within("logit_bias", bias, -100.0, 100.0)?))
            }
            _ => {
                let token: String = token.chars().take(40).collect();
                let last = vocabulary.saturating_sub(1);
                return wrong(format!("logit_bias names the token '{token}': ids go from 0 to {last}"));
            }
        }
    }
    Ok(biases)
}
