#!/bin/sh
# socat as a reflector: every connection goes back to where it came from.
#
# ${port} and ${return_port} are filled in by ../proxies.py. The listener forks for each connection
# and, by nofork, becomes this script again, with the connection as its standard input and output;
# that becomes the socat which carries it. So one process stays for each connection, and no pipe
# lies between the two sockets.
case ${1-listen} in
listen) exec socat TCP4-LISTEN:${port},reuseaddr,fork,backlog=4096 EXEC:"$0 carry",nofork ;;
carry) exec socat STDIO "TCP4:$SOCAT_PEERADDR:${return_port}" ;;
esac
