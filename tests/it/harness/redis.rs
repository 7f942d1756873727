//! A Redis of one's own: the machine's `redis-server` on a free loopback port, in a temporary directory, without
//! persistence unless a test saves. It ends with its handle.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct PrivateRedis {
    directory: TempDir,
    port: u16,
    server: Child,
}

impl PrivateRedis {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Somebody else may take the port between our look and the server's: look again.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
            if let Some(server) = serve(&directory, port) {
                return Self { directory, port, server };
            }
        }
        panic!("redis-server does not start; is it installed?");
    }

    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command from outside.
    pub fn command(&self, words: &[&str]) -> redis::Value {
        let mut connection = redis::Client::open(self.address()).and_then(|client| client.get_connection());
        let connection = connection.as_mut().expect("a connection to the private Redis");
        redis::cmd(words[0]).arg(&words[1..]).query(connection).expect("a command that works")
    }

    /// Keeps the data of this moment: what a restart begins with.
    pub fn save(&self) {
        self.command(&["SAVE"]);
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    /// Starts the killed server again on its port, with what was last saved.
    pub fn revive(&mut self) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if let Some(server) = serve(&self.directory, self.port) {
                self.server = server;
                return;
            }
        }
        panic!("the private Redis does not come back on its port");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a server and waits until it answers; `None` if it ends instead.
fn serve(directory: &TempDir, port: u16) -> Option<Child> {
    let mut server = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
        .arg("--dir")
        .arg(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).expect("an address");
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(10), "redis-server does not answer");
        if server.try_wait().expect("a child to ask").is_some() {
            return None;
        }
        // It counts only if it is our server that answers on this port.
        let ours = format!("process_id:{}\r", server.id());
        let answer = client
            .get_connection()
            .and_then(|mut connection| redis::cmd("INFO").arg("server").query::<String>(&mut connection));
        if answer.is_ok_and(|info| info.contains(&ours)) {
            return Some(server);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
