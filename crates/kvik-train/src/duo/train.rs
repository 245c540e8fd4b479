//! The loss of the gates, and gradient descent on it.

use burn::{
    optim::{AdamW, AdamWConfig, AdamWState, Optimizer},
    tensor::Tensor,
};

use super::{
    Settings,
    data::{Passkeys, Sequence},
    streams::streams,
};
use crate::{TrainError, frozen::FrozenLlama};

/// PyTorch's term in Adam's denominator, which the paper's program used.
const EPSILON: f32 = 1e-8;

/// Share of the steps in which the learning rate goes up, and as many in which it goes down again.
const RAMP: f64 = 0.2;

/// Share of the learning rate with which steps begin and end.
const LOWEST: f64 = 0.1;

/// A loss and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean squared distance of the two copies' hidden states, over channels and labels.
    pub distance: f32,
    /// Mean gate, before the step.
    pub mean_gate: f32,
}

/// Mean squared distance between the mixed and the full copy's final hidden states, over channels and the sequence's labels.
pub fn distance(
    model: &FrozenLlama,
    sequence: &Sequence,
    gates: &Tensor<2>,
    settings: &Settings,
) -> Tensor<1> {
    let labels = sequence.labels.clone();
    let both = streams(model, &sequence.tokens, gates, settings);
    let of_labels = |x: Tensor<2>| x.narrow(0, labels.start, labels.len());
    (of_labels(both.mixed) - of_labels(both.full)).square().mean()
}

/// The loss and its gradient, both of `gates`, `[layers, kv_heads]`.
pub fn gradient(
    model: &FrozenLlama,
    sequence: &Sequence,
    gates: &Tensor<2>,
    settings: &Settings,
) -> (Loss, Tensor<2>) {
    let gates = gates.clone().inner().autodiff().require_grad();
    let distance = distance(model, sequence, &gates, settings);
    let mean_gate = gates.clone().clamp(0.0, 1.0).abs().mean();
    let loss = distance.clone() + mean_gate.clone() * settings.penalty;
    let number = |x: Tensor<1>| x.inner().into_scalar::<f32>();
    let said = Loss { distance: number(distance), mean_gate: number(mean_gate) };
    let gradient = gates.grad(&loss.backward()).expect("the penalty depends on every gate");
    (said, gradient)
}

/// Learning rate of the step after `done` steps.
pub fn learning_rate(settings: &Settings, done: usize) -> f64 {
    let ramp = (settings.steps as f64 * RAMP).max(1.0);
    let from_edge = (done as f64).min((settings.steps - 1).saturating_sub(done) as f64);
    settings.learning_rate * (LOWEST + (1.0 - LOWEST) * (from_edge / ramp).min(1.0))
}

/// A training run.
pub struct Training<'a> {
    model: &'a FrozenLlama,
    passkeys: &'a Passkeys<'a>,
    settings: Settings,
    optimizer: AdamW,
    state: Option<AdamWState<2>>,
    /// `[layers, kv_heads]`
    gates: Tensor<2>,
    done: usize,
}

impl<'a> Training<'a> {
    /// A run that starts with all gates at 1.
    pub fn new(model: &'a FrozenLlama, passkeys: &'a Passkeys<'a>, settings: Settings) -> Self {
        let optimizer = AdamWConfig::new().with_weight_decay(0.0).with_epsilon(EPSILON).build();
        let gates = Tensor::ones([model.layers(), model.kv_heads()], model.device());
        Self { model, passkeys, settings, optimizer, state: None, gates, done: 0 }
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// The gates, layer after layer, each between 0 and 1.
    pub fn gates(&self) -> Vec<f32> {
        self.gates.clone().into_data().iter::<f32>().collect()
    }

    /// One sequence, one step. Returns the loss before it.
    ///
    /// # Errors
    /// [`TrainError`] if the step's sequence cannot be made, or its loss is no number; the gates are then as they were.
    pub fn step(&mut self) -> Result<Loss, TrainError> {
        let sequence = self.passkeys.sequence(self.done)?;
        let (loss, gradient) = gradient(self.model, &sequence, &self.gates, &self.settings);
        if !loss.distance.is_finite() {
            return Err(TrainError::Diverged { step: self.done + 1, loss: loss.distance });
        }
        let rate = learning_rate(&self.settings, self.done);
        let (gates, state) = self.optimizer.step(rate, self.gates.clone(), gradient, self.state.take());
        (self.gates, self.state) = (gates.clamp(0.0, 1.0), state);
        self.done += 1;
        Ok(loss)
    }
}
