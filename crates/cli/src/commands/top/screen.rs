//! The terminal's other screen, which is left however the command ends.

use std::io::{Stdout, Write, stdout};
use std::sync::Once;

use anyhow::Context as _;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::{Frame, Terminal};

/// A screen of its own, gone again once this is dropped.
#[derive(Debug)]
pub(super) struct Screen<W: Write = Stdout> {
    terminal: Terminal<CrosstermBackend<W>>,
}

impl Screen {
    /// Takes the terminal of standard output. A panic gives it back before it is told.
    ///
    /// # Errors
    /// When the terminal cannot be written or has no size.
    pub(super) fn open() -> anyhow::Result<Self> {
        static RESTORE: Once = Once::new();
        RESTORE.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                leave(&mut stdout());
                report(panic);
            }));
        });
        Self::of(stdout())
    }
}

impl<W: Write> Screen<W> {
    fn of(mut output: W) -> anyhow::Result<Self> {
        execute!(output, EnterAlternateScreen, Hide).context("take the terminal")?;
        let terminal = match Terminal::new(CrosstermBackend::new(output)) {
            Ok(terminal) => terminal,
            Err(error) => {
                leave(&mut stdout());
                return Err(error).context("ask the terminal for its size");
            }
        };
        Ok(Self { terminal })
    }

    /// Draws what has changed, in the terminal's size of now.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame)) -> anyhow::Result<()> {
        self.terminal.draw(render).context("draw on the terminal")?;
        Ok(())
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        leave(self.terminal.backend_mut());
    }
}

/// Gives the terminal back as it was.
fn leave(output: &mut impl Write) {
    // A terminal that is gone needs nothing.
    let _ = execute!(output, LeaveAlternateScreen, Show);
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_screen_is_left_when_drawing_panics() {
        let written = Written::default();
        let output = written.clone();
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let terminal = Terminal::with_options(
                CrosstermBackend::new(output),
                ratatui::TerminalOptions {
                    viewport: ratatui::Viewport::Fixed(ratatui::layout::Rect::new(0, 0, 20, 5)),
                },
            );
            let mut screen = Screen { terminal: terminal.unwrap() };
            screen.draw(|_| panic!("this test's own")).unwrap();
        }));
        assert!(panicked.is_err());
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("\u{1b}[?1049l") && text.ends_with("\u{1b}[?25h"), "{text:?}");
    }

    #[test]
    fn a_terminal_that_is_gone_is_an_error_and_no_panic() {
        #[derive(Debug)]
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let error = Screen::of(Closed).unwrap_err();
        let cause = error.root_cause().downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::BrokenPipe, "the command ends without a word");
    }
}
