"""The life of an ENI through aliyun-python-sdk (RPC form, HMAC-SHA1); prints what it saw, one JSON value a line."""

import json
import sys
import urllib.request

from aliyunsdkcore.auth.credentials import StsTokenCredential
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.client import AcsClient
from aliyunsdkecs.request.v20140526 import (
    AssignPrivateIpAddressesRequest,
    AttachNetworkInterfaceRequest,
    CreateNetworkInterfaceRequest,
    DeleteNetworkInterfaceRequest,
    DescribeInstancesRequest,
    DescribeInstanceTypesRequest,
    DescribeNetworkInterfacesRequest,
    DetachNetworkInterfaceRequest,
    UnassignPrivateIpAddressesRequest,
)

API, METADATA = sys.argv[1:3]
REGION = "cn-hangzhou"


def ask(client, request, method="POST"):
    request.set_endpoint(API)
    request.set_protocol_type("http")
    request.set_accept_format("json")
    request.set_method(method)
    return json.loads(client.do_action_with_exception(request))


def say(name, value):
    print(json.dumps([name, value]), flush=True)


def refused(client):
    try:
        ask(client, DescribeNetworkInterfacesRequest.DescribeNetworkInterfacesRequest())
    except ServerException as e:
        return [e.get_http_status(), e.get_error_code()]
    return None


def sts_client():
    base = METADATA + "/latest/meta-data/ram/security-credentials/"
    role = urllib.request.urlopen(base).read().decode()
    c = json.load(urllib.request.urlopen(base + role))
    credential = StsTokenCredential(c["AccessKeyId"], c["AccessKeySecret"], c["SecurityToken"])
    return AcsClient(region_id=REGION, credential=credential, auto_retry=False)


client = AcsClient("testid", "testsecret", REGION, auto_retry=False)


def describe(eni, client=client, method="POST"):
    request = DescribeNetworkInterfacesRequest.DescribeNetworkInterfacesRequest()
    request.set_NetworkInterfaceIds([eni])
    found = ask(client, request, method)["NetworkInterfaceSets"]["NetworkInterfaceSet"]
    return [
        [
            e["Status"],
            e["InstanceId"],
            [[p["PrivateIpAddress"], p["Primary"]] for p in e["PrivateIpSets"]["PrivateIpSet"]],
            e["Description"],
            [[t["TagKey"], t["TagValue"]] for t in e["Tags"]["Tag"]],
        ]
        for e in found
    ]


def create():
    request = CreateNetworkInterfaceRequest.CreateNetworkInterfaceRequest()
    request.set_VSwitchId("vsw-pod")
    request.set_SecurityGroupIdss(["sg-sim"])
    request.set_SecondaryPrivateIpAddressCount(1)
    request.set_Description("节点 a ~*+/=&%")
    request.set_Tags([{"Key": "creator", "Value": "terway"}])
    request.set_ClientToken("tok ~*+/=&%")
    return ask(client, request)["NetworkInterfaceId"]


eni = create()
say("again", create() == eni)
say("created", describe(eni))

request = AttachNetworkInterfaceRequest.AttachNetworkInterfaceRequest()
request.set_NetworkInterfaceId(eni)
request.set_InstanceId("i-node")
ask(client, request)
say("attached", describe(eni, method="GET"))

request = AssignPrivateIpAddressesRequest.AssignPrivateIpAddressesRequest()
request.set_NetworkInterfaceId(eni)
request.set_SecondaryPrivateIpAddressCount(2)
assigned = ask(client, request)["AssignedPrivateIpAddressesSet"]["PrivateIpSet"]["PrivateIpAddress"]
say("assigned", assigned)

request = UnassignPrivateIpAddressesRequest.UnassignPrivateIpAddressesRequest()
request.set_NetworkInterfaceId(eni)
request.set_PrivateIpAddresss([assigned[0]])
ask(client, request)
say("unassigned", describe(eni, client=sts_client()))

request = DescribeInstancesRequest.DescribeInstancesRequest()
request.set_InstanceIds(json.dumps(["i-node"]))
say("instance", [i["InstanceType"] for i in ask(client, request)["Instances"]["Instance"]])

request = DescribeInstanceTypesRequest.DescribeInstanceTypesRequest()
request.set_InstanceTypess(["ecs.sim.large"])
say("type", [t["EniQuantity"] for t in ask(client, request)["InstanceTypes"]["InstanceType"]])

request = DetachNetworkInterfaceRequest.DetachNetworkInterfaceRequest()
request.set_NetworkInterfaceId(eni)
request.set_InstanceId("i-node")
ask(client, request)
say("detached", describe(eni)[0][:2])

request = DeleteNetworkInterfaceRequest.DeleteNetworkInterfaceRequest()
request.set_NetworkInterfaceId(eni)
ask(client, request)
say("deleted", describe(eni))

say("wrong secret", refused(AcsClient("testid", "wrong", REGION, auto_retry=False)))
say("wrong key", refused(AcsClient("nobody", "testsecret", REGION, auto_retry=False)))
