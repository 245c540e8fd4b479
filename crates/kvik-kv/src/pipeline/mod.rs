//! The pipeline: which methods rewrite a sequence's cache, in which order, with which parameters.
//!
//! It is written the same way everywhere: `name(key=value,…)+name(…)`, for example `snapkv(budget=1024)+kivi(bits=2)`. A
//! parameter that is left out has the default of the method's paper. [`Pipeline::parse`] checks names, values and whether the
//! stages go together; its errors point at the character. The methods themselves stand in [`registry`].

mod arguments;
mod parse;
pub mod registry;

use std::fmt;

pub use arguments::{Arguments, Parameter, ParameterKind, bytes};
pub use parse::PipelineError;
pub use registry::{Build, Direction, MethodInfo};

use crate::{CacheError, KvShape, Method};

/// Some methods, in the order in which they run.
#[derive(Clone, Default)]
pub struct Pipeline {
    stages: Vec<Stage>,
}

/// One method with its arguments.
#[derive(Clone)]
pub struct Stage {
    method: &'static MethodInfo,
    arguments: Arguments,
}

impl Stage {
    /// Which method.
    pub fn method(&self) -> &'static MethodInfo {
        self.method
    }

    /// Its arguments, defaults included.
    pub fn arguments(&self) -> &Arguments {
        &self.arguments
    }
}

impl Pipeline {
    /// The pipeline that keeps every token as it is.
    pub fn full() -> Self {
        Self::default()
    }

    /// Reads a pipeline. An empty text, `full` and `none` are the one without methods.
    ///
    /// # Errors
    /// [`PipelineError`] says what is wrong at which character.
    pub fn parse(text: &str) -> Result<Self, PipelineError> {
        parse::pipeline(text).map(|stages| Self { stages })
    }

    /// Its stages, in their order.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// True if it has no methods.
    pub fn is_full(&self) -> bool {
        self.stages.is_empty()
    }

    /// True if a cache that this pipeline has rewritten still is what any later query would get: then it may be handed out as
    /// a shared prefix.
    pub fn is_query_free(&self) -> bool {
        self.stages.iter().all(|stage| stage.method.query_free)
    }

    /// The methods for one new sequence.
    ///
    /// # Errors
    /// [`CacheError::Method`] if a method does not fit a model of this `shape`, or changes weights that were loaded otherwise.
    pub fn methods(&self, shape: &KvShape) -> Result<Vec<Box<dyn Method>>, CacheError> {
        let methods = self.build(shape)?;
        let asked = self.basis(&methods);
        match self.stages.first() {
            Some(stage) if asked != shape.basis => {
                let loaded = if shape.basis.is_empty() { "as they are in the file" } else { &shape.basis };
                let asked = if asked.is_empty() { "them as they are in the file" } else { &asked };
                let reason = format!(
                    "the model's weights were loaded {loaded}, and the pipeline '{self}' needs {asked}; load the model with this pipeline"
                );
                Err(CacheError::Method { method: stage.method.name, reason })
            }
            _ => Ok(methods),
        }
    }

    /// The methods, whatever the weights were loaded for.
    ///
    /// # Errors
    /// [`CacheError::Method`] if a method does not fit a model of this `shape`.
    pub fn build(&self, shape: &KvShape) -> Result<Vec<Box<dyn Method>>, CacheError> {
        let build = |stage: &Stage| {
            (stage.method.build)(&stage.arguments, shape)
                .map_err(|reason| CacheError::Method { method: stage.method.name, reason })
        };
        self.stages.iter().map(build).collect()
    }

    /// The stages that change weights, as [`KvShape::basis`] has them; `methods` are those of [`Self::build`].
    pub fn basis(&self, methods: &[Box<dyn Method>]) -> String {
        let changing = self.stages.iter().zip(methods).filter(|(_, method)| method.changes_weights());
        changing.map(|(stage, _)| stage.to_string()).collect::<Vec<_>>().join("+")
    }
}

/// The stage with the arguments that differ from the defaults.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.method.name)?;
        let given: Vec<String> =
            self.arguments.given().map(|(name, value)| format!("{name}={value}")).collect();
        if given.is_empty() { Ok(()) } else { write!(f, "({})", given.join(",")) }
    }
}

/// The text that gives the same pipeline, with the arguments that differ from the defaults.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stages.is_empty() {
            return f.write_str("full");
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let plus = if index == 0 { "" } else { "+" };
            write!(f, "{plus}{stage}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({self})")
    }
}

impl Eq for Pipeline {}

/// Pipelines are equal if they do the same: a default that is written out makes no difference.
impl PartialEq for Pipeline {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}
