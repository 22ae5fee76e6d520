//! Nothing leaves the machine: commands on ONNX Runtime open no socket, and what they leave in the
//! user's folders is dlc's own.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dlc_runtime::Backend;
use libtest_mimic::{Failed, Trial};

use crate::common::fixture;

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let library = backend.and_then(Backend::library).map(Path::to_owned);
    vec![
        Trial::test(
            "private::commands_open_no_socket_and_leave_only_dlcs_own_files",
            move || {
                let library = library.expect("not ignored");
                check_commands(&library)
            },
        ),
        Trial::test("private::who_opens_a_socket_is_ended", || {
            let mut command = Command::new("bash");
            command
                .args(["-c", "exec 3<>/dev/udp/127.0.0.1/9"])
                .stderr(Stdio::null());
            let status = without_sockets(&mut command).status()?;
            if status.signal() == Some(libc::SIGSYS) {
                Ok(())
            } else {
                Err(format!("{status}").into())
            }
        }),
    ]
}

fn check_commands(library: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    for name in [
        "home", "tmp", "cache", "data", "config", "state", "runtime", "work",
    ] {
        fs::create_dir(at(name))?;
    }
    let (model, digits) = (fixture("tiny-llama"), fixture("digits-dit"));
    let (model, digits) = (
        model.to_str().expect("a plain path"),
        digits.to_str().expect("a plain path"),
    );
    let commands: [&[&str]; 9] = [
        &["doctor"],
        &[
            "compile",
            model,
            "--pass",
            "fit-prune:drop=4,samples=1,length=32",
            "--profile",
            "ort",
            "-o",
            "text",
        ],
        &[
            "run",
            "text",
            "--prompt",
            "In the beginning",
            "--max-tokens",
            "8",
        ],
        &["verify", "text"],
        &["bench", "text", "--max-tokens", "4", "--repeats", "1"],
        &["bench", "text", "--calibrate"],
        &["compile", digits, "--profile", "onnx", "-o", "digits"],
        &["sample", "digits", "--steps", "1", "-o", "one.png"],
        &["demo", "--drop", "4", "--max-tokens", "4"],
    ];
    for args in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlc"));
        command
            .args(args)
            .current_dir(at("work"))
            .env_clear()
            .env("ORT_DYLIB_PATH", library)
            .env("PATH", "/usr/bin:/bin");
        command.env("HOME", at("home")).env("TMPDIR", at("tmp"));
        for (variable, name) in [
            ("CACHE_HOME", "cache"),
            ("DATA_HOME", "data"),
            ("CONFIG_HOME", "config"),
            ("STATE_HOME", "state"),
        ] {
            command.env(format!("XDG_{variable}"), at(name));
        }
        let output = without_sockets(command.env("XDG_RUNTIME_DIR", at("runtime"))).output()?;
        let said = format!(
            "dlc {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            return Err(said.into());
        }
        if args == ["doctor"] && !String::from_utf8_lossy(&output.stdout).contains("telemetry  off")
        {
            return Err("doctor doesn't say that telemetry is off".into());
        }
        let strange: Vec<PathBuf> = left_in(folder.path())
            .into_iter()
            .filter(|path| !path.starts_with("work") && !path.starts_with("cache/dlc"))
            .collect();
        if !strange.is_empty() {
            return Err(format!("{strange:?} was left behind by {said}").into());
        }
    }
    Ok(())
}

/// Every file below `folder`, and every folder that is empty, but for those directly in it.
fn left_in(folder: &Path) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(inner) = open.pop() {
        for entry in fs::read_dir(&inner).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if inner != folder {
                left.push(path.strip_prefix(folder).unwrap().to_owned());
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            }
        }
    }
    left
}

/// The command, ended by SIGSYS as soon as it opens a socket.
fn without_sockets(command: &mut Command) -> &mut Command {
    const fn step(code: u32, jump: (u8, u8), k: u32) -> libc::sock_filter {
        libc::sock_filter {
            code: code as u16,
            jt: jump.0,
            jf: jump.1,
            k,
        }
    }
    // The number of the system call is the first field of what the filter looks at.
    const FILTER: [libc::sock_filter; 4] = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            (0, 1),
            libc::SYS_socket as u32,
        ),
        step(
            libc::BPF_RET | libc::BPF_K,
            (0, 0),
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let confine = || {
        let mut filter = FILTER;
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        #[expect(unsafe_code, reason = "a filter of system calls")]
        // SAFETY: both calls change only the calling process; the filter lives as long as the call
        // that copies it.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ) == 0
        };
        if set {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    #[expect(unsafe_code, reason = "runs between fork and exec")]
    // SAFETY: allocates nothing and makes two system calls.
    unsafe {
        command.pre_exec(confine)
    }
}
