#!/usr/bin/env bash
# Builds the image kafka-local:<version> without pulling one: Kafka's jars from Maven Central, a JRE of only the
# modules that Kafka uses, this machine's C library and a static busybox. Needs a Docker engine; Maven, a JDK 17
# or newer and the static busybox are installed where they are missing and we may.
set -euo pipefail
cd "$(dirname "$0")"
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
version=${KAFKA_VERSION:-4.4.0}
case $version in 3.*) logging=reload4j ;; *) logging=log4j2 ;; esac
# The last Kafka 4 whose kafka-dump-log is in a jar that Maven Central has (later: in kafka-tools, which it has
# not). Kafka 3 has its own among its jars.
dump_log_version=4.1.2
image=${1:-kafka-local:$version}
root=build/rootfs

is_static() { command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

missing=()
command -v mvn >/dev/null || missing+=(maven)
command -v jlink >/dev/null || missing+=(default-jdk-headless)
is_static || missing+=(busybox-static)
if [ ${#missing[@]} -gt 0 ]; then ../../../scripts/apt-install.sh "building the Kafka image" "${missing[@]}"; fi

rm -rf build
mkdir -p $root/{bin,lib64,etc/kafka/docker,opt/kafka/{bin,config,libs,tools},var/lib/kafka/data,mnt/shared/config}
mkdir -m 1777 $root/tmp

# A Maven that waits for an answer for ever would hang everything.
jars() { timeout 300 mvn -q -B -ntp -P $logging dependency:copy-dependencies -DincludeScope=runtime "$@"; }
jars -Dkafka.version="$version" -DoutputDirectory=$root/opt/kafka/libs
[ $logging = reload4j ] ||
  jars -Dkafka.version="$dump_log_version" -DincludeGroupIds=org.apache.kafka -DoutputDirectory=$root/opt/kafka/tools

# java.desktop is for log4j2 and snakeyaml (java.beans); its libraries for screens may go.
jlink --output $root/opt/java --strip-java-debug-attributes --no-header-files --no-man-pages \
  --add-modules java.base,java.desktop,java.logging,java.management,java.naming,java.security.jgss,java.security.sasl,java.xml,jdk.crypto.ec,jdk.management,jdk.management.agent,jdk.security.auth,jdk.unsupported
rm -f $root/opt/java/lib/lib{awt*,fontmanager,freetype,lcms,javajpeg,jawt,mlib_image,splashscreen,jsound}.so

# The libraries that the JVM links to; and libpthread, an empty stub today, but zstd-jni names it: without it the
# image starts, and fails when somebody uses zstd.
{
  ldd $root/opt/java/bin/java $root/opt/java/lib/*.so $root/opt/java/lib/server/libjvm.so
  ldconfig -p | awk '/libpthread.so.0/ && /x86-64|AArch64/ {print "-", "=>", $NF}'
} | awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\/lib/ {print $1}' | grep -v "$root" | sort -u |
  while read -r file; do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
  done

cp "$(command -v busybox)" $root/bin/busybox
for applet in $($root/bin/busybox --list | grep -vx busybox); do ln -s busybox "$root/bin/$applet"; done
printf 'root:x:0:0:root:/:/bin/sh\nappuser:x:1000:1000::/tmp:/bin/sh\n' >$root/etc/passwd
printf 'root:x:0:\nappuser:x:1000:\n' >$root/etc/group
echo 'hosts: files dns' >$root/etc/nsswitch.conf
for name in log4j2.yaml log4j.properties; do
  cp $name $root/etc/kafka/docker/$name
  cp $name $root/etc/kafka/docker/tools-$name
  sed 's/INFO/ERROR/' $name >$root/opt/kafka/tools/$name
done
install -m 755 run make-cds $root/etc/kafka/docker/
install -m 755 kafka-dump-log.sh $root/opt/kafka/bin/

cp Dockerfile build/
# Debian's engine comes without buildx.
DOCKER_BUILDKIT=0 timeout 300 docker build -q -t "$image" build
