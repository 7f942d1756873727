//! A browser: headless Chromium behind a chromedriver of its own, with a profile of its own. Both are killed when the
//! value is dropped, also by a panic.

use std::process::Stdio;

use fantoccini::{Client, ClientBuilder};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{until, within};

/// No sandbox, since tests run as root too; no graphics card; and nothing that speaks to the world by itself.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1280,1000",
];

pub struct Browser {
    pub page: Client,
    driver: Child,
    profile: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            // What Chromium leaves about goes with the profile.
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver is installed");
        let mut lines = BufReader::new(driver.stdout.take().expect("stdout is piped")).lines();
        let port = within("chromedriver says its port", async {
            loop {
                let line = lines.next_line().await.expect("stdout is text").expect("chromedriver runs");
                if let Some((_, port)) = line.split_once("successfully on port ") {
                    break port.trim_end_matches('.').parse::<u16>().expect("a port");
                }
            }
        })
        .await;
        // The rest of what it prints is read, so that it never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile_flag = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile_flag.as_str()]).collect();
        let capabilities = json!({"goog:chromeOptions": {"args": flags}});
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(serde_json::from_value(capabilities).expect("an object"));
        let address = format!("http://127.0.0.1:{port}");
        let page = within("a browser starts", builder.connect(&address)).await.expect("a browser");
        Self { page, driver, profile }
    }

    /// What an expression gives on the page that is shown.
    pub async fn value(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        within(expression, self.page.execute(&script, Vec::new())).await.unwrap_or_else(|e| panic!("{expression}: {e}"))
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        until(expression, async || (self.value(expression).await == Value::Bool(true)).then_some(())).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser need not be in its driver's group; it is known by its profile.
        for pid in processes_naming(&self.profile.path().display().to_string()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(driver) = self.driver.id() {
            let _ = killpg(Pid::from_raw(driver as i32), Signal::SIGKILL);
        }
    }
}

/// The processes with a text among their arguments.
fn processes_naming(text: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let names = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(text)
    };
    pids.filter(names).map(Pid::from_raw).collect()
}
