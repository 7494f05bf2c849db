//! Keys of a terminal, read one by one.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::sync::oneshot;

/// A terminal that hands over each key as it is pressed, and does not show it; as it was before once this is
/// dropped.
#[derive(Debug)]
pub(super) struct Keys {
    before: Option<Termios>,
    /// None where there is no terminal, or nobody reads it any more.
    quit: Option<oneshot::Receiver<()>>,
}

impl Keys {
    /// Those of standard input, where it is a terminal.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn listen() -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self { before: None, quit: None });
        }
        let (quits, quit) = oneshot::channel();
        let before = tcgetattr(std::io::stdin()).context("look at the terminal")?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal.
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("read keys of the terminal")?;
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || wait_for_q(quits))
            .context("start a thread for keys")?;
        Ok(Self { before: Some(before), quit: Some(quit) })
    }

    /// Returns when `q` is pressed; never where there is no terminal.
    pub(super) async fn quit(&mut self) {
        if let Some(quit) = &mut self.quit {
            if quit.await.is_ok() {
                return;
            }
            // Standard input has ended. What has answered once may not be asked again.
            self.quit = None;
        }
        std::future::pending::<()>().await;
    }
}

/// Ends with the process where nobody presses it.
fn wait_for_q(quits: oneshot::Sender<()>) {
    let mut key = [0];
    while std::io::stdin().lock().read(&mut key).is_ok_and(|count| count == 1) {
        if key[0].eq_ignore_ascii_case(&b'q') {
            // Who does not listen any more ends already.
            let _ = quits.send(());
            return;
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs nothing.
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}
