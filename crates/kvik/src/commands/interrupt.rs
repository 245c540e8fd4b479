//! Ctrl-C: the first press asks what is running to stop, the second ends the process, and while nothing runs that
//! could be asked the first does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Whether Ctrl-C was pressed since the work began.
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signal over for the rest of the process; until [`begin`](Self::begin) it ends the process as before.
    pub fn install() -> io::Result<Interrupt> {
        let (pressed, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        // They run in this order: whoever is idle or was asked before ends here.
        flag::register_conditional_default(SIGINT, Arc::clone(&idle))?;
        flag::register_conditional_default(SIGINT, Arc::clone(&pressed))?;
        flag::register(SIGINT, Arc::clone(&pressed))?;
        Ok(Interrupt { pressed, idle })
    }

    /// Work begins that looks at [`pressed`](Self::pressed).
    pub fn begin(&self) {
        self.pressed.store(false, Ordering::SeqCst);
        self.idle.store(false, Ordering::SeqCst);
    }

    /// The work has ended.
    pub fn end(&self) {
        self.idle.store(true, Ordering::SeqCst);
        self.pressed.store(false, Ordering::SeqCst);
    }

    /// Whether the work was asked to stop.
    pub fn pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }
}
