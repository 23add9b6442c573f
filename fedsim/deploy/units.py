"""Files that have systemd, or Docker Compose, keep a role running."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Literal

from fedsim.version import DISTRIBUTION, __version__

Role = Literal["server", "device"]
UNIT = Template("""\
# cp this to /etc/systemd/system, set User= and the paths, then: systemctl enable --now fedsim-$role
[Unit]
Description=fedsim $role
After=network-online.target
Wants=network-online.target

[Service]
User=fedsim
WorkingDirectory=$folder
ExecStart=/usr/bin/env fedsim deploy $command
ExecReload=/bin/kill -HUP $$MAINPID
Restart=$restart
RestartSec=2
SuccessExitStatus=130
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=$folder
PrivateTmp=yes
PrivateDevices=$private
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
$memory
[Install]
WantedBy=multi-user.target
""")
COMPOSE = Template("""\
# docker compose up --build
services:
  $role:
    build:
      dockerfile_inline: |
        FROM python:3.11-slim
        RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu $name==$version
    command: fedsim deploy $command
    working_dir: /work
    volumes: [".:/work"]
    restart: $restart
    stop_grace_period: 30s
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
$rest""")
COMMANDS = {"server": "run . experiment.toml --resume", "device": "device ."}


def write(folder: Path, role: Role, port: int = 0) -> None:
    """`units/fedsim-ROLE.service` and `compose.yaml` in a role's folder. `port`: where devices reach a server."""
    here, server = folder / "units", role == "server"
    here.mkdir(exist_ok=True)
    memory = "" if server else "# what the terms allow its app, and some more:\nMemoryMax=18G\n"
    (here / f"fedsim-{role}.service").write_text(
        UNIT.substitute(
            role=role,
            folder=folder,
            command=COMMANDS[role],
            restart="on-failure" if server else "always",
            private="no" if server else "yes",
            memory=memory,
        )
    )
    (folder / "compose.yaml").write_text(
        COMPOSE.substitute(
            role=role,
            command=COMMANDS[role],
            name=DISTRIBUTION,
            version=__version__,
            restart="on-failure" if server else "always",
            rest=f'    ports: ["{port}:{port}"]\n' if server else "",
        )
    )
