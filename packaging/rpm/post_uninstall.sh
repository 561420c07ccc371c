# $1 is 1 at an upgrade: the sockets stay open, only the agent is restarted.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -ge 1 ]; then
        systemctl try-restart forebay.service 'forebay@*.service' || :
    fi
fi
