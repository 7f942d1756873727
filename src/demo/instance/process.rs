//! What a private server of any kind needs: a directory, a port, a user, and to be gone when we are.
//!
//! ```text
//!   this process ──── stdin, never closed while we live ────▶ watchdog (sh, its own process group)
//!        │                "running 4711" · "stopped" · "released"           │
//!        └──▶ server 4711                    end of input without "released": stops 4711, removes the directory
//! ```
//!
//! Dropping a [`Server`] stops it in order. The watchdog covers what dropping cannot: SIGKILL, `exit`, an abort, a test
//! runner that is interrupted.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use rand::Rng;

/// How long a server may take to stop by itself before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

const WATCHDOG: &str = r#"
pid=0
while read -r word value; do
  case $word in
    running) pid=$value ;;
    stopped) pid=0 ;;
    released) exit 0 ;;
  esac
done
if [ "$pid" -gt 0 ]; then
  kill -s "$1" "$pid"
  tries=0
  while kill -0 "$pid" && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  kill -s KILL "$pid"
fi
if [ -n "$2" ]; then rm -rf -- "$2"; fi
"#;

/// A server process in its own directory.
pub(super) struct Server {
    directory: PathBuf,
    /// Whether the directory stays when the value is dropped.
    keep: bool,
    /// The signal on which the server ends at once and in order.
    stop_signal: Signal,
    account: Option<User>,
    child: Option<Child>,
    watchdog: Child,
}

impl Server {
    /// A directory, not yet a process.
    pub(super) fn prepare(kind: &str, stop_signal: Signal, keep: bool) -> anyhow::Result<Self> {
        let account = unprivileged_account()?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("rowcast-{kind}-"))
            .tempdir()
            .context("creating a temporary directory")?
            .keep();
        let removed_by_watchdog = if keep { Path::new("") } else { &directory };
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "rowcast-watchdog", stop_signal.as_str().trim_start_matches("SIG")])
            .arg(removed_by_watchdog)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting a shell")?;
        let server = Self { directory, keep, stop_signal, account, child: None, watchdog };
        server.own(&server.directory)?;
        Ok(server)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The user that the server runs as, where it is not our own.
    pub(super) fn account(&self) -> Option<&User> {
        self.account.as_ref()
    }

    /// Gives a file or directory to the user that the server runs as.
    pub(super) fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(account) = &self.account {
            std::os::unix::fs::chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
                .with_context(|| format!("giving {} to {}", path.display(), account.name))?;
        }
        Ok(())
    }

    /// Writes a file that only the server's user can read.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.directory.join(name);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        self.own(&path)?;
        Ok(path)
    }

    /// A command in the server's directory, as its user, out of reach of the terminal's Ctrl-C.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).stdin(Stdio::null()).process_group(0).env("LC_ALL", "C");
        if let Some(account) = &self.account {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        command
    }

    /// Starts the server; what it says goes to `server.log`.
    pub(super) fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.is_none(), "the server is running already");
        let log = File::options().append(true).create(true).open(self.log_path())?;
        self.own(&self.log_path())?;
        let program = command.get_program().to_owned();
        let child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        self.tell_watchdog(&format!("running {}", child.id()));
        self.child = Some(child);
        Ok(())
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// The end of what the server said, for error messages.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process is there. Notices that it has ended.
    pub(super) fn is_running(&mut self) -> bool {
        let ended = match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => return false,
        };
        if ended {
            self.child = None;
            self.tell_watchdog("stopped");
        }
        !ended
    }

    /// Sends a signal and waits until the process has ended; kills it when it does not.
    pub(super) async fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.is_running() {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same without a runtime.
    fn stop_blocking(&mut self, signal: Signal) {
        self.signal(signal);
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.is_running() {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // Fails only when it has ended already, which the caller notices.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Tells the watchdog of a process that it is to stop, should we vanish.
    pub(super) fn tell_watchdog(&mut self, line: &str) {
        if let Some(input) = &mut self.watchdog.stdin {
            // A watchdog that somebody killed is not worth failing for: dropping still cleans up.
            let _ = writeln!(input, "{line}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_blocking(self.stop_signal);
        if !self.keep {
            // A process that was killed a moment ago may still be creating files: try again until it is gone.
            let deadline = Instant::now() + Duration::from_secs(2);
            while let Err(error) = std::fs::remove_dir_all(&self.directory) {
                if error.kind() == io::ErrorKind::NotFound || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.tell_watchdog("released");
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// The user to run servers as when we are root: Postgres refuses to run as root, and a demo has no need to.
fn unprivileged_account() -> anyhow::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(account) = User::from_name(name).context("looking up a user")? {
            return Ok(Some(account));
        }
    }
    anyhow::bail!("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it as")
}

/// A port on loopback that is free now.
///
/// Taken from below the range in which Linux (32768–) and macOS (49152–) choose ports for outgoing connections: a client
/// that keeps dialling a server which is down can otherwise be given that very port and connect to itself, and then
/// the server cannot have it back.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let mut random = rand::rng();
    for _ in 0..200 {
        let port = random.random_range(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port between 15000 and 32000 on 127.0.0.1")
}

/// A password nobody has to remember.
pub(super) fn random_password() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

/// What a program prints with one flag; `None` where it is not there or fails.
pub(super) fn output_of(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
